"""The code in the README and in ``docs/training.md`` runs, and their links and names exist."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import fatnn_rs
from fatnn_rs import zoo
from fatnn_rs.quant import QUANTIZERS
from fatnn_rs.train.recipe import recipe_names

README = Path(__file__).parent.parent / "README.md"
TRAINING = README.parent / "docs" / "training.md"


def test_readme_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.+?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    picture, training = blocks
    monkeypatch.chdir(tmp_path)
    Image.effect_mandelbrot((50, 40), (-2, -2, 2, 2), 50).save("picture.png")
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(picture, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert re.fullmatch(r"(\w+ [\d.]+%\n){5}", printed), printed
    exec(compile(training, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert re.search(r"^0 of [\d,]+ codes differ", printed, re.MULTILINE), printed
    assert (tmp_path / "digits.safetensors").is_file()
    net, images, logits = names["net"], names["images"], names["logits"]
    assert isinstance(net, torch.nn.Module)
    assert torch.equal(net(images), logits)  # type: ignore[arg-type]


def test_training_page_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.+?)```", TRAINING.read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for code in blocks:
        exec(compile(code, str(TRAINING), "exec"), names)
        assert "net" in names
    assert capsys.readouterr().out.count("LayerState(layer=") == 9
    assert zoo.read_card("mine.json").description == "my digits"


def test_training_page_names_every_recipe_and_quantizer() -> None:
    text = TRAINING.read_text(encoding="utf-8")
    for name in recipe_names():
        family, _, last = name.rpartition("-")
        assert f"`{name}`" in text or (f"`-{last}`" in text and f"`{family}-" in text), name
    for family in QUANTIZERS:
        assert f"| `{family}` |" in text, family
    configs = re.findall(r"--config ([a-z0-9-]+)(?=[ \n])", text)
    assert configs
    for config in configs:
        assert config in recipe_names(), config


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(
        f"docs/{name}.md"
        for name in ("calls", "how-it-works", "integrations", "ladder", "performance")
    ),
]
PAGES += [
    "docs/training.md",
    *(str(path.relative_to(README.parent)) for path in README.parent.glob("*/results/**/*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_links_and_paths_of_a_page_exist(page: str) -> None:
    root, file = README.parent, README.parent / page
    text = file.read_text(encoding="utf-8")
    makefile = (root / "Makefile").read_text()
    for target in set(
        re.findall(r"\bmake ([a-z-]+)\b", "\n".join(re.findall(r"`[^`\n]+`|^    .+", text, re.M)))
    ):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert links or page != "README.md"  # the pattern finds something
    for link in links:
        assert (file.parent / link).exists(), link
    for link in re.findall(r"\]\(([a-z/.-]*)#[^)]+\)", text):
        assert (file.parent / link).exists(), link
    for path in re.findall(r"`((?:benches|docs|python|rust|scripts|tests)/[\w/.-]+)`", text):
        assert (root / path).exists(), path


def test_functions_named_in_the_readme_exist() -> None:
    names = set(re.findall(r"\bfatnn\.([a-z_]+)\(", README.read_text(encoding="utf-8")))
    assert names
    for name in names:
        assert name in fatnn_rs.__all__, name
