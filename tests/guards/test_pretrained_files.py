"""Which pretrained model could not be found."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from cl_callbacks import SequentialFineTuner
from cl_callbacks.data.processed_images import image_processor
from cl_callbacks.data.tokenised import tokeniser
from tests.tiny_transformers import tiny_encoder


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("load", "what"),
    [(tokeniser, "tokeniser"), (image_processor, "image processor")],
    ids=["tokeniser", "image processor"],
)
def test_the_name_is_said(load: object, what: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=f"the {what} 'no-such/thing' could not be found: there is no"
    ):
        load("no-such/thing")  # type: ignore[operator]


def test_the_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the model 'no-such/model' could not be found"):
        SequentialFineTuner("no-such/model", num_labels=2)
    with pytest.raises(FileNotFoundError, match=r"the model '/no/such' could not be found"):
        SequentialFineTuner("/no/such", num_labels=2)
    folder = Path(tiny_encoder(tmp_path / "model"))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(FileNotFoundError, match=f"the folder '{folder}' holds no whole model"):
        SequentialFineTuner(str(folder), num_labels=2)
