"""English sentences for the sentence encoder, as numbers of tokens."""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

LENGTH = 128
SENTENCES = """The ferry leaves the island twice a day in summer.
She repaired the old clock with parts from a sewing machine.
A man is eating food at a table by the window.
Interest rates were left unchanged for the third month in a row.
The children built a dam of stones across the stream.
How do I reset the password of my account?
Heavy rain is expected in the north, with floods in low-lying areas.
The committee postponed its decision until more data are available.
He plays the cello in a small orchestra on Thursdays.
Please return the books to the library before the end of the month.
The compiler could not prove that the two pointers never overlap.
A woman is slicing tomatoes for a salad.
Bees find their way home by the position of the sun.
The train was delayed by forty minutes because of a signal failure.
We hiked up to the glacier and saw two eagles on the way.
The patient was given antibiotics and recovered within a week.
Prices of wheat rose sharply after the drought.
Nobody in the village remembered who had planted the oak.
The new phone has a better camera but a smaller battery.
Two dogs are running through a field of tall grass.
The court ruled that the contract had never been valid.
Stir the sauce over low heat until it thickens.
Astronomers found water vapour in the atmosphere of a distant planet.
The museum is closed on Mondays and on public holidays.
Her first novel was rejected by eleven publishers.
The software update fixes a problem with printing on Linux.
A cat sleeps on the keyboard of an open laptop.
The bridge was built in 1890 and is still in use today.
They argued about politics all through dinner.
Take the second street on the left after the church.
The experiment was repeated with a larger group of volunteers.
It was so cold that the lake froze over in one night.
The striker scored twice in the last five minutes.
Add two eggs, a cup of flour and a pinch of salt.
The company plans to open four new stores next year.
My grandmother still writes letters by hand.
The server restarts every night at three o'clock to install updates.
A boy is riding a red bicycle down a steep road.
The theory predicts that heavier particles decay faster.
We ran out of petrol ten miles from the nearest town.
Someone is playing the guitar in the flat upstairs.
The vaccine has to be stored at minus seventy degrees.
The orchestra tuned their instruments while the audience took their seats.
Can you recommend a good restaurant near the station?
The river changed its course after the earthquake.
Most of the energy is lost as heat.
He forgot his umbrella on the bus again.
The bank will charge a fee for withdrawals abroad.
A group of tourists is taking pictures of the cathedral.
The painting was hidden in a cellar during the war.
Memory is allocated once at start and never freed.
The storm damaged the roofs of several houses along the coast.
She speaks four languages and is learning a fifth.
The recipe calls for fresh basil, but dried will do.
The spacecraft will reach its orbit in early spring.
A man is eating a piece of bread.
Our flight was cancelled, so we slept at the airport.
The referee stopped the game because of fog.
Small errors add up when a sum has millions of terms.
The old lighthouse now serves as a hotel.
Voters will decide on the proposal in November.
The gardener prunes the roses at the end of winter.
A girl in a yellow coat is feeding the pigeons.
The data set contains ten thousand images of handwritten digits.""".splitlines()
SEED = 2026


def write(folder: Path) -> tuple[Path, Path, tuple[str, ...]]:
    """Calibration and held-out .npz (every second sentence each), and notes."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, mask, notes = tokens()
    paths = folder / "calibration.npz", folder / "heldout.npz"
    for start, path in enumerate(paths):
        np.savez(path, input_ids=ids[start::2, None], attention_mask=mask[start::2, None])
    return (*paths, notes)


def tokens() -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """``input_ids`` and ``attention_mask``, int64 ``[sentences, LENGTH]``; noise with a note without a tokenizer."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return (*_noise(), ("seeded numbers instead of sentences -> pip install tokenizers",))
    tokenizer = Tokenizer.from_str(_tokenizer_json())
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(SENTENCES)
    ids, mask = (np.array([getattr(e, key) for e in encoded], np.int64) for key in ("ids", "attention_mask"))
    return ids, mask, (f"{len(SENTENCES)} English sentences",)


def _noise() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(SEED)
    lengths = random.integers(8, 24, len(SENTENCES))
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    return random.integers(1000, 20000, mask.shape) * mask, mask


def _tokenizer_json() -> str:
    """From the package that the zoo takes the model from."""
    folder = Path(__file__).resolve().parents[1] / "model_zoo"
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location("model_zoo", folder / "__main__.py")
    assert spec and spec.loader
    zoo = importlib.util.module_from_spec(spec)
    sys.modules["model_zoo"] = zoo
    spec.loader.exec_module(zoo)
    return zipfile.ZipFile(io.BytesIO(zoo.fetch(zoo.MINILM))).read("tokenizer.json").decode()
