"""The page: self-contained, complete, escaped, well-formed, and the same for the same data."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tvmflow.errors import EnvironmentProblem, MissingTool
from tvmflow.report import html
from tvmflow.report.data import (
    Accuracy,
    Advice,
    Coverage,
    Device,
    Entry,
    Island,
    LayerCost,
    LayerError,
    ReportData,
    Runs,
    Size,
    TensorRange,
)
from tvmflow.report.html import figures, render, write_report

FULL = ReportData(
    "MobileNetV2",
    target="zen5",
    precision="int8",
    created="2026-11-21",
    device=Device("local", "AMD EPYC", ("avx2", "avx512f"), 2, (0.1, 0.2, 0.3), 1014.0, 253.0),
    peak_fraction=0.41,
    summary=(Entry("fp32", 0.99, bytes=8_900_000), Entry("int8", 0.98, bytes=2_530_000, best=True)),
    accuracy=(Accuracy("fp32", 0.99, 0.999), Accuracy("int8", 0.985, 0.999, 0.998, 31.25, 0.9997, 0.41)),
    sizes=(Size("artifact", 2_530_000), Size("of which weights", 2_310_000)),
    latency=(
        Runs("tvmflow", (0.12, 0.10, 0.11, 0.5), "int8", ours=True),
        Runs("onnxruntime 1.31", (0.22, 0.22, 0.22), "fp32"),
        Runs("onnxruntime 1.31", (0.14, 0.14, 0.15), "int8"),
    ),
    layers=(LayerCost("/a/Conv", "conv2d", 0.08, 0.01, 0.6), LayerCost("/b/Slice", "slice", 0.02)),
    errors=(LayerError("/a/Conv", "conv2d", 35.0), LayerError("/noisy", "add", 12.0), LayerError("/exact", "slice", None)),
    advice=(Advice("/noisy", "SQNR falls by 9 dB", 'layer = "/noisy", skip = true'),),
    coverage=Coverage(98, 2, 3, (Island("/softmax", "softmax", "no integer form keeps its accuracy"),)),
    ranges=(TensorRange("/a/Conv", "output", -1.0, 6.0, 0.0275, -92, 1, (1, 5, 9, 2), "minmax"),),
    stages=(("import", 0.5), ("build", 3.0)),
    provenance={"recipe": "int8", "model sha256": "ab" * 32},
    notes=("All kernels specialised.",),
)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Checks nesting; collects text, attributes and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == [], "every element is closed"
    return reader


def test_nothing_comes_from_elsewhere() -> None:
    page = render(FULL)
    assert "<script" not in page and "@import" not in page and "http:" not in page and "https:" not in page
    references = [value for _, name, value in parse(page).attributes if name in ("src", "href", "xlink:href", "data")]
    assert references and all(value.startswith("#") for value in references)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_references_have_a_target() -> None:
    attributes = parse(render(FULL)).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for _, name, value in attributes if name == "href"} <= set(ids)


def test_every_part_is_shown() -> None:
    reader = parse(render(FULL))
    words = " ".join(" ".join(reader.texts).split())
    for heading in (
        "Summary",
        "Latency",
        "Device",
        "Accuracy",
        "Size",
        "Coverage",
        "Advice",
        "Time of each layer",
        "Ranges",
        "Compile time",
        "Provenance",
    ):
        assert heading in words
    for detail in (
        "no integer form keeps its accuracy",
        "31.2",
        "60 %",
        "0.0275",
        "1014 Gop/s",
        "ab" * 32,
        "All kernels specialised.",
    ):
        assert detail in words


def test_an_empty_report_has_no_empty_sections() -> None:
    page = render(ReportData("nothing yet"))
    parse(page)
    assert "<section" not in page and "<table" not in page


@pytest.mark.parametrize(
    "part", [f.name for f in dataclasses.fields(ReportData) if f.name not in ("title", "schema", "peak_fraction")]
)
def test_any_part_alone_renders(part: str) -> None:
    parse(render(ReportData("alone", **{part: getattr(FULL, part)})))


def test_the_head_compares_with_the_best_rival() -> None:
    found = {figure.caption: figure.value for figure in figures(FULL)}
    assert found["the speed of onnxruntime 1.31 int8"] == f"{0.14 / 0.115:.2f}\N{MULTIPLICATION SIGN}"
    assert found["of operators in integers"] == "98 %" and found["of the machine's peak"] == "41 %"


def test_names_are_escaped_and_dollars_are_no_formulas() -> None:
    nasty = '<script>alert("1")</script> $x_{ & "'
    data = dataclasses.replace(
        FULL,
        title=nasty,
        latency=(Runs(nasty, (1.0, 2.0), ours=True),),
        layers=(LayerCost(nasty, nasty, 1.0),),
        coverage=Coverage(1, 1, 0, (Island(nasty, nasty, nasty),)),
        provenance={nasty: nasty},
    )
    page = render(data)
    assert "<script" not in page
    assert "".join(parse(page).texts).count(nasty) >= 8


def test_the_same_data_gives_the_same_page() -> None:
    assert render(FULL) == render(FULL)


def test_colours_follow_the_readers_system() -> None:
    page = render(FULL)
    assert "prefers-color-scheme: dark" in page
    drawn = "".join(re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL))
    assert "var(--ours)" in drawn and not re.search(r"#[0-9a-fA-F]{6}\b", drawn), "no colour of its own"


def test_layers_are_ranked_and_weak_ones_marked() -> None:
    rows = html.error_rows((*FULL.errors, LayerError("/nan", "add", float("nan"))))
    assert [row.name for row in rows] == ["/noisy", "/a/Conv", "/exact", "/nan"]
    assert [row.weak for row in rows] == [True, False, False, False]


def test_layers_without_any_noise_still_plot() -> None:
    parse(render(ReportData("exact", errors=(LayerError("/a", "add", None), LayerError("/b", "add", None)))))


def test_a_share_above_the_peak_is_shown_as_it_is() -> None:
    page = render(ReportData("odd", layers=(LayerCost("/a", "conv2d", 1.0, 1.0, 1.4), LayerCost("/b", "conv2d", 1.0, 1.0, 0.9))))
    assert "140 %" in page and page.count('class="bar weak"') == 1


def test_values_off_the_grid_are_marked() -> None:
    wide = TensorRange("/wide", "output", -10.0, 10.0, 10 / 255, -128, 1, (5, 0, 0, 15), "percentile")
    assert wide.inside == (False, False, True, True) and wide.clipped == 0.25
    page = render(ReportData("clipped", ranges=(wide,)))
    assert page.count('class="cut"') == 1 and ">25 %<" in page
    assert 'class="cut"' not in render(FULL)
    assert TensorRange("/w", "weight", 0.0, 1.0, 0.1).clipped is None


def test_outliers_are_counted_at_the_edge() -> None:
    usual = tuple(1 + i / 100 for i in range(50))
    page = render(ReportData("busy", latency=(Runs("a", (*usual, 40.0, 50.0), ours=True),)))
    assert "2 slower runs are beyond the edge" in page
    assert "beyond the edge" not in render(ReportData("quiet", latency=(Runs("a", usual, ours=True),)))


def test_what_does_not_fit_is_counted() -> None:
    layers = tuple(LayerCost(f"/layer{i}", "conv2d", 1.0) for i in range(html.MOST_ROWS + 7))
    page = render(ReportData("deep", layers=layers))
    assert "7 more are left out here" in page and f"/layer{html.MOST_ROWS + 1}<" not in page


def test_equal_runs_and_one_run_plot() -> None:
    parse(render(ReportData("still", latency=(Runs("a", (1.0, 1.0), ours=True), Runs("b", (1.0,))))))


def test_thousands_of_runs_stay_small() -> None:
    few = render(ReportData("many", latency=(Runs("a", tuple(1 + i / 400 for i in range(400)), ours=True),)))
    many = render(ReportData("many", latency=(Runs("a", tuple(1 + i / 40000 for i in range(40000)), ours=True),)))
    assert len(many) < 1.2 * len(few)


def test_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(path, FULL)
    assert path.read_text(encoding="utf-8") == render(FULL)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="can't write the report"):
        write_report(tmp_path / "file" / "report.html", FULL)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingTool, match=r"tvmflow\[report\]"):
        render(FULL)
