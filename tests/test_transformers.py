"""Hugging Face models from configurations convert whole, and run without torch."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fatnn_rs as fatnn

transformers = pytest.importorskip("transformers")

IDS = torch.randint(3, 90, (2, 8), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, 8, dtype=torch.long)
MASK[1, 5:] = 0
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXT = {**SIZES, "vocab_size": 100, "max_position_embeddings": 64}
VISION = {**SIZES, "image_size": 32, "patch_size": 8}


def _whisper():
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        num_mel_bins=20,
        max_source_positions=16,
    )
    return WhisperEncoder(config)


def _llama(**options):
    config = transformers.LlamaConfig(**TEXT, num_key_value_heads=1, use_cache=False, **options)
    return transformers.LlamaModel(config)


def _of(name: str, **options):
    config = getattr(transformers, name.replace("Model", "Config").replace("Encoder", ""))
    return lambda: getattr(transformers, name)(config(**options))


#: Name → model and its inputs.
MODELS = {
    "bert": (_of("BertModel", **TEXT), (IDS, MASK)),
    "bert without a mask": (_of("BertModel", **TEXT), (IDS,)),
    "bert, eager": (_of("BertModel", **TEXT, attn_implementation="eager"), (IDS, MASK)),
    "distilbert": (
        _of(
            "DistilBertModel",
            dim=32,
            hidden_dim=64,
            n_layers=2,
            n_heads=2,
            vocab_size=100,
            max_position_embeddings=64,
        ),
        (IDS, MASK),
    ),
    "roberta": (_of("RobertaModel", **TEXT), (IDS, MASK)),
    "vit": (_of("ViTModel", **VISION), (IMAGES,)),
    "deit": (_of("DeiTModel", **VISION), (IMAGES,)),
    "beit": (_of("BeitModel", **VISION, use_relative_position_bias=True), (IMAGES,)),
    "clip": (_of("CLIPVisionModel", **VISION), (IMAGES,)),
    "swin": (
        _of(
            "SwinModel",
            image_size=32,
            patch_size=4,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[1, 2],
            window_size=4,
        ),
        (IMAGES,),
    ),
    "whisper": (_whisper, (torch.rand(2, 20, 32, generator=torch.Generator().manual_seed(2)),)),
    "llama": (_llama, (IDS,)),
    "llama with a mask": (_llama, (IDS, MASK)),
    "llama, eager": (lambda: _llama(attn_implementation="eager"), (IDS, MASK)),
    "t5": (
        _of(
            "T5EncoderModel",
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            vocab_size=100,
        ),
        (IDS, MASK),
    ),
}


def tensors(value) -> list:
    """Tensors and arrays of what a model returns."""
    if isinstance(value, (Tensor, np.ndarray)):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    return [x for item in value for x in tensors(item)] if not isinstance(value, str) else []


def trained(make, inputs) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make().eval()
        fatnn.prepare(model, example_inputs=inputs)
        with torch.no_grad():
            model.train()(*inputs)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_transformer_runs_without_torch(name, tmp_path):
    make, inputs = MODELS[name]
    model = trained(make, inputs)
    net = fatnn.convert(model, inputs)
    assert not [node for node in net.graph.nodes if node.op == "torch"], net.report
    assert fatnn.verify(model, net, inputs).codes_different == 0
    with torch.no_grad():
        expected, got = model(*inputs), net(*inputs)
    assert type(got) is type(expected)
    for a, b in zip(tensors(expected), tensors(got), strict=True):
        assert torch.equal(a, b)
    fatnn.save(net, tmp_path / "net.safetensors")
    loaded = fatnn.load(tmp_path / "net.safetensors", "torch")(*inputs)
    assert type(loaded) is OrderedDict
    for a, b in zip(tensors(expected), tensors(loaded), strict=True):
        assert torch.equal(a, b)
    network = fatnn.load_numpy(tmp_path / "net.safetensors")
    for batch in (1, 2):
        arrays = [x[:batch].numpy() for x in inputs]
        found = tensors(network(*arrays))
        for a, b in zip(tensors(expected), found, strict=True):
            # Codes of a value next to a threshold may differ if float sums round differently.
            difference = np.abs(a[:batch].numpy() - b)
            assert np.median(difference) < 1e-5


def test_inputs_by_name():
    make, inputs = MODELS["bert"]
    model = trained(make, inputs)
    named = {"attention_mask": MASK, "input_ids": IDS}
    net = fatnn.convert(model, named)
    with torch.no_grad():
        assert torch.equal(net(**named)[0], model(**named)[0])
    assert fatnn.verify(model, net, named).codes_different == 0
    # BERT's forward takes other keywords, too; a plain forward does not.
    encoder = nn.Sequential(nn.Linear(4, 4))
    config = fatnn.TernaryConfig(first="ternary", last="ternary")
    fatnn.prepare(encoder.eval(), config, example_inputs=torch.rand(2, 4))
    with pytest.raises(fatnn.InputError, match="got 'mask'"):
        fatnn.convert(encoder, {"input": torch.zeros(1, 4), "mask": MASK})


def test_another_batch_and_other_masks():
    make, inputs = MODELS["bert"]
    model = trained(make, inputs)
    net = fatnn.convert(model, inputs)
    for batch in (1, 3, 5):
        ids = torch.randint(3, 90, (batch, 8))
        mask = (torch.arange(8) < torch.randint(1, 9, (batch, 1))).long()
        with torch.no_grad():
            expected, got = model(ids, mask)[0], net(ids, mask)[0]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(fatnn.InputError, match="captured for one shape only"):
        net(IDS[:, :5], MASK[:, :5])


def test_ids_beyond_the_table_are_an_error(tmp_path):
    make, inputs = MODELS["bert"]
    net = fatnn.convert(trained(make, inputs), inputs)
    fatnn.save(net, tmp_path / "net.safetensors")
    network = fatnn.load_numpy(tmp_path / "net.safetensors")
    with pytest.raises(fatnn.InputError, match="index out of range"):
        network(IDS.numpy() + 100, MASK.numpy())


def test_a_masked_encoder_has_the_models_bits():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(90, 32, padding_idx=0)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2)
            self.head = nn.Linear(32, 5)

        def forward(self, ids):
            hidden = self.layers(self.table(ids), src_key_padding_mask=ids == 0)
            return self.head(hidden.mean(1))

    ids = IDS * MASK
    model = trained(Net, (ids,))
    net = fatnn.convert(model, ids)
    with torch.no_grad():
        assert torch.equal(net(ids), model(ids))
    assert fatnn.verify(model, net, ids).codes_different == 0


def test_torchvisions_swin_is_one_call(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.swin_transformer.SwinTransformer(
        [4, 4], 16, [2], [2], [4, 4], num_classes=5
    )
    images = (IMAGES[:, :, :20, :20],)
    model = trained(lambda: model, images)
    net = fatnn.convert(model, images, float_layers="rust")
    assert len(net.segments) == len(net._parts) == 1, net.report
    fatnn.save(net, tmp_path / "net.safetensors")
    found = fatnn.load_numpy(tmp_path / "net.safetensors")(images[0].contiguous().numpy())
    np.testing.assert_array_equal(found, net(*images).numpy())
