"""What a session is told of its pictures, where a batch could make them differ from the same pictures one by one."""
from dataclasses import replace

import pytest
import torch

from hotlora.trainer import dataset
from hotlora.trainer.backend import repeat_text, stack_text
from hotlora.trainer.hosts.standalone import StandaloneBackend
from hotlora.trainer.run import make_session, read_material

LONG = "a photo of sks, " + "round and red and smiling, " * 20
LONGER = LONG * 2


class InPieces(StandaloneBackend):
    """The embedded base with captions of any length, encoded piece by piece and joined, as ComfyUI and stable-diffusion-webui do."""

    def encode_text(self, captions, grad=False):
        rows = []
        for caption in captions:
            words = caption.split()
            pieces = [" ".join(words[i:i + 40]) for i in range(0, max(1, len(words)), 40)]
            rows.append({"hidden_BLD": super(InPieces, self).encode_text(pieces, grad)["hidden_BLD"].flatten(0, 1)})
        return self.batch_text(rows)

    def batch_text(self, rows):
        return repeat_text(rows)


@pytest.fixture
def in_pieces(backend):
    return InPieces(backend.parts, backend.device, backend.dtype)


def loss_and_gradients(session, batches):
    """Losses of the batches of (sample number, picture index), and what all of them together give to each parameter."""
    with session.backend.borrow(), session.adapter.attached(session.backend.components()):
        losses = [session._loss(batch) for batch in batches]
        sum(losses).backward()
    found = [p.grad.clone() for p in session.parameters]
    for p in session.parameters:
        p.grad = None
    return sum(losses).item(), found


@pytest.mark.parametrize("shuffle_tags", [False, True], ids=["from the cache", "encoded now"])
def test_a_batch_of_captions_of_different_lengths_equals_its_pictures_one_by_one(in_pieces, config, gallery, shuffle_tags):
    (gallery / "1.txt").write_text(LONG)
    (gallery / "2.txt").write_text(LONGER)
    session = make_session(read_material(replace(config, caption_dropout=0.0, shuffle_tags=shuffle_tags, keep_tags=100)), in_pieces)
    with torch.no_grad():
        for layer in session.adapter.layers.values():
            layer.up.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    samples = list(enumerate(range(4)))
    lengths = [len(session.dataset.condition([session.dataset.examples[i].caption])["hidden_BLD"][0]) for _, i in samples]
    assert len(set(lengths)) == 3
    together, gradients = loss_and_gradients(session, [samples])
    one_by_one, theirs = loss_and_gradients(session, [[sample] for sample in samples])
    assert together == pytest.approx(one_by_one, rel=1e-5)
    error = max(((a - b).norm() / b.norm()).item() for a, b in zip(gradients, theirs))
    assert error < 1e-4, error
    assert session.train().status == "completed"


def test_a_repeated_caption_says_the_same_and_one_padded_with_zeros_does_not(in_pieces):
    z_BCHW = torch.randn(1, in_pieces.latent_channels, 16, 16, generator=torch.Generator().manual_seed(1))

    def predicted(rows):
        with torch.no_grad():
            return in_pieces.predict(z_BCHW, torch.tensor([500]), rows, torch.zeros(1, 6))

    text = in_pieces.encode_text(["a photo of a red circle"])
    beside = in_pieces.encode_text(["a photo of a red circle", LONG])["hidden_BLD"][:1]
    assert beside.shape[1] > text["hidden_BLD"].shape[1]
    torch.testing.assert_close(predicted({"hidden_BLD": beside}), predicted(text), rtol=1e-4, atol=1e-5)
    padded = torch.cat([text["hidden_BLD"], torch.zeros_like(text["hidden_BLD"])], 1)
    assert (predicted({"hidden_BLD": padded}) - predicted(text)).abs().max() > 1e-3


def test_as_many_captions_as_pictures_are_kept_in_memory(session_of, config, monkeypatch):
    """Also of a batch that has more of them than are kept; what has left the memory is on the disk."""
    monkeypatch.setattr(dataset, "IN_MEMORY", 3)
    data, captions = session_of(config).dataset, [f"a photo of sks, number {i}" for i in range(5)]
    data.texts.prepare(captions)
    monkeypatch.setattr(data.texts, "encode", lambda _: pytest.fail("a caption was encoded twice"))
    first = data.condition(captions)
    assert list(data._embedded) == captions[2:]
    assert torch.equal(data.condition(captions)["hidden_BLD"], first["hidden_BLD"]) and len(data._embedded) == 3


def test_texts_of_different_lengths_are_never_stacked_by_mistake():
    short, long = ({"hidden_BLD": torch.zeros(length, 4)} for length in (77, 231))
    assert stack_text([short, short])["hidden_BLD"].shape == (2, 77, 4)
    with pytest.raises(AssertionError, match="different lengths"):
        stack_text([short, long])
    assert repeat_text([short, long])["hidden_BLD"].shape == (2, 231, 4)
    two_thirds = {"hidden_BLD": torch.zeros(154, 4)}
    assert repeat_text([two_thirds, long])["hidden_BLD"].shape == (2, 462, 4)
