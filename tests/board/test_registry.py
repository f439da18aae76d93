"""The list of boards."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvmflow.board.registry import Board, add_board, find_board, read_boards, registry_path, remove_board, write_boards
from tvmflow.errors import ConfigError

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
BOARD = st.builds(Board, host=TEXT, port=st.integers(1, 65535), key=TEXT, target=TEXT, ssh=TEXT, threads=st.integers(0, 256))


@settings(max_examples=50)
@given(boards=st.dictionaries(TEXT.filter(bool), BOARD, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, boards: dict[str, Board]) -> None:
    path = tmp_path_factory.mktemp("boards") / "boards.toml"
    write_boards(boards, path)
    read = read_boards(path)
    assert {name: (b.host, b.port, b.key, b.target, b.ssh, b.threads) for name, b in read.items()} == {
        name: (b.host, b.port, b.key, b.target, b.ssh, b.threads) for name, b in boards.items()
    }
    assert all(board.name == name for name, board in read.items())


def test_add_replace_remove(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "boards.toml"
    add_board(Board(name="rpi", host="10.0.0.2", target="rpi4"), path)
    add_board(Board(name="nano", host="10.0.0.3"), path)
    add_board(Board(name="rpi", host="10.0.0.9"), path)
    assert {b.host for b in read_boards(path).values()} == {"10.0.0.9", "10.0.0.3"}
    assert remove_board("nano", path).host == "10.0.0.3"
    assert list(read_boards(path)) == ["rpi"]
    with pytest.raises(ConfigError, match="did you mean 'rpi'"):
        remove_board("rpii", path)
    assert [p.name for p in path.parent.iterdir()] == ["boards.toml"]


@pytest.mark.parametrize("name", ["", "local", "a b", "a:1", "a/b"])
def test_names_that_mean_something_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        add_board(Board(name=name), tmp_path / "boards.toml")


@pytest.mark.parametrize(
    ("name", "host", "port"), [("10.0.0.7:9100", "10.0.0.7", 9100), ("rpi.lan:1", "rpi.lan", 1), ("[::1]:9300", "::1", 9300)]
)
def test_addresses(tmp_path: Path, name: str, host: str, port: int) -> None:
    board = find_board(name, tmp_path / "none.toml")
    assert (board.host, board.port) == (host, port) and board.address == name


@pytest.mark.parametrize("name", ["rpi:", "rpi:99999", "rpi:http", "nano"])
def test_unknown_boards(tmp_path: Path, name: str) -> None:
    add_board(Board(name="nana"), tmp_path / "boards.toml")
    with pytest.raises(ConfigError, match="unknown board"):
        find_board(name, tmp_path / "boards.toml")


def test_nearest_name(tmp_path: Path) -> None:
    add_board(Board(name="workshop"), tmp_path / "boards.toml")
    with pytest.raises(ConfigError, match="did you mean 'workshop'"):
        find_board("workshp", tmp_path / "boards.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[boards.a]\nhots = 'x'", "hots"), ("schema = 99", "newer"), ("boards = 3", "boards"), ("not toml", "boards.toml")],
)
def test_damaged_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "boards.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_boards(path)


def test_place_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVMFLOW_BOARDS", str(tmp_path / "mine.toml"))
    assert registry_path() == tmp_path / "mine.toml"
    monkeypatch.delenv("TVMFLOW_BOARDS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert registry_path() == tmp_path / "tvmflow" / "boards.toml"
