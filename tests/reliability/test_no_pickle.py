"""No file is ever unpickled or run: by the text of the code, and by watching every path that loads something."""

from __future__ import annotations

import ast
import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rl4rec.data.dataset import PreparedData
from rl4rec.errors import UserError
from rl4rec.model.create import create_policy
from rl4rec.model.load import load_policy
from rl4rec.model.policy import SlatePolicy
from rl4rec.params import ContinuedParams, PolicyParams, SFTParams
from rl4rec.serve.recommender import load_recommender
from rl4rec.train.loop import Trainer
from rl4rec.train.seeding import seed_everything
from rl4rec.train.sft import SFTTrainer
from tests.reliability.bad_inputs import PICKLE, set_config, set_inner
from tests.train.helpers import make_run, make_trainer, raises_interrupted, rl_params, same_weights

ROOT = Path(__file__).parents[2]

# --- by the text of the code -----------------------------------------------------------------------

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "code"}
# What runs code that it is given, or unpacks archives, whose members may lead outside of the folder.
CALLS = {"eval", "exec", "compile", "__import__", "extractall", "unpack_archive", "load_pickle", "read_pickle"}
YAML_LOADERS = {"SafeLoader", "CSafeLoader", "_StrictLoader"}  # the last one is a SafeLoader
SCANNED = sorted(
    path
    for name in ("rl4rec", "pipelines", "benchmarks", ".ci")
    for path in (ROOT / name).rglob("*.py")
    if not any(part.startswith(".venv") for part in path.parts)
)


def findings(source: str, name: str = "x.py") -> Iterator[str]:
    for node in ast.walk(ast.parse(source, name)):
        match node:
            case ast.Import(names=names):
                yield from (f"import {alias.name}" for alias in names if alias.name.split(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                yield f"from {module} import"
            case ast.Call(func=ast.Name(id=called)) if called in CALLS:
                yield f"{called}()"
            case ast.Call(func=ast.Attribute(value=owner, attr=called), args=arguments, keywords=keywords):
                given = {keyword.arg: keyword.value for keyword in keywords}
                yield from _of_a_call(ast.unparse(owner), called, [ast.unparse(each) for each in arguments], given)


def _of_a_call(owner: str, called: str, arguments: list[str], given: dict[str | None, ast.expr]) -> Iterator[str]:
    words = {name: ast.unparse(value) for name, value in given.items()}
    if called in CALLS and (called, owner) not in (("compile", "re"), ("compile", "torch")) and called != "eval":
        yield f"{owner}.{called}()"
    if owner == "torch" and called == "load" and words.get("weights_only") != "True":
        yield "torch.load() without weights_only=True"
    if owner in ("np", "numpy") and called == "load" and words.get("allow_pickle", "False") != "False":
        yield "np.load(allow_pickle=...)"
    if owner == "yaml" and called in ("load", "load_all", "unsafe_load", "full_load"):
        loader = words.get("Loader", arguments[1] if len(arguments) > 1 else "")
        if loader.split(".")[-1] not in YAML_LOADERS:
            yield f"yaml.{called}() without a safe loader"
    if owner == "os" and called in ("system", "popen"):
        yield f"os.{called}()"
    if words.get("shell", "False") != "False":
        yield f"{owner}.{called}(shell=...)"
    if words.get("trust_remote_code", "False") != "False":
        yield f"{owner}.{called}(trust_remote_code=...)"
    if words.get("weights_only", "True") != "True":
        yield f"{owner}.{called}(weights_only=...)"
    # Auto classes alone may run a checkpoint's own code or read its weights in pickle form.
    if called in ("from_pretrained", "from_config") and owner.startswith("Auto"):
        if words.get("trust_remote_code") != "False":
            yield f"{owner}.{called}() without trust_remote_code=False"
        if owner.startswith("AutoModel") and called == "from_pretrained" and words.get("use_safetensors") != "True":
            yield f"{owner}.{called}() without use_safetensors=True"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import load", "import joblib", "import cloudpickle.x", "torch.load(f)",
        "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "yaml.load(f)", "__import__(x)",
        "yaml.load(f, yaml.Loader)", "yaml.load(f, Loader=yaml.FullLoader)", "yaml.unsafe_load(f)", "eval(x)",
        "exec(x)", "os.system(x)", "subprocess.run(x, shell=True)", "tarfile.open(f).extractall()",
        "shutil.unpack_archive(f)", "pd.read_pickle(f)", "AutoTokenizer.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True, use_safetensors=True)",
        "AutoModelForCausalLM.from_pretrained(x, trust_remote_code=False)",
    ],
)  # fmt: skip
def test_the_scan_finds(source: str) -> None:
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    ["yaml.safe_load(f)", "yaml.load(f, Loader=yaml.SafeLoader)", "np.load(f)", "re.compile(x)", "model.eval()"],
)
def test_the_scan_leaves_alone(source: str) -> None:
    assert not list(findings(source))


def test_no_code_unpickles_or_runs_what_it_reads() -> None:
    assert f"none in {len(SCANNED)} files" in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    found = {str(path.relative_to(ROOT)): list(findings(path.read_text(), str(path))) for path in SCANNED}
    assert not {name: problems for name, problems in found.items() if problems}


# --- by watching what is loaded --------------------------------------------------------------------

_watched: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and event == "pickle.find_class":
        _watched.append(".".join(map(str, arguments)))


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_hook)  # cannot be removed; does nothing unless something is watched


class Watch:
    """While it is entered, no unpickling passes unseen: not by name, nor inside of a library."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __enter__(self) -> None:
        global _watched
        _watched = []

        def forbidden(*arguments: object, **_: object) -> None:
            raise AssertionError(f"unpickled: {arguments}")

        for name in ("load", "loads", "Unpickler", "_load", "_loads", "_Unpickler"):
            self._patch.setattr(pickle, name, forbidden)
        self._patch.setattr(torch, "load", forbidden)

    def __exit__(self, *_: object) -> None:
        global _watched
        self._patch.undo()
        found, _watched = _watched, None
        assert not found, f"unpickled: {found}"


@pytest.fixture
def watch() -> Watch:
    return Watch(pytest.MonkeyPatch())


def test_the_watch_sees(watch: Watch, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="unpickled"), watch:
        pickle.loads(b"")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(AssertionError, match="unpickled"), watch:
        torch.load(tmp_path / "x.pt", weights_only=True)
    original = pickle.loads  # kept by a library before the watch
    with pytest.raises(AssertionError, match=r"unpickled: .'pathlib"), watch:
        original(pickle.dumps(Path()))


PLANTED = (
    *("pytorch_model.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin"),
    *("rng_state.pth", "rng_state_0.pth", "random_states_0.pkl", "custom_checkpoint_0.pkl", "training_args.bin"),
)
SFT = SFTParams(batch_size=16, num_epochs=8, eval_every_epochs=2, learning_rate=1e-2, logging_steps=2, precision="fp32")


@pytest.fixture
def sft_folder(tiny_data: PreparedData, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    seed_everything(0)
    params = PolicyParams(n_layer=1, n_embd=16, n_head=2, dropout=0.1, max_history=8)
    policy, _ = create_policy(params, tiny_data.item_ids, tiny_tokenizer)
    policy.save_pretrained(tmp_path / "sft")
    tiny_tokenizer.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def training(name: str, start: SlatePolicy, data: PreparedData, stop: int | None) -> Trainer:
    """One of the four ways to train, to be interrupted at step `stop`."""
    rl = rl_params(sft_continued=ContinuedParams(learning_rate=1e-3))
    if name == "sft":
        return SFTTrainer(copy.deepcopy(start), data, SFT, make_run(data, [], interrupt_at=stop))
    trainer: Trainer = make_trainer(name, start, data, rl, interrupt_at=stop)
    return trainer


@pytest.mark.parametrize(("name", "stop"), [("sft", 20), ("grpo", 6), ("ppo", 6), ("sft_continued", 6)])
def test_training_goes_on_without_unpickling(
    name: str,
    stop: int,
    sft_folder: Path,
    tiny_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    watch: Watch,
) -> None:
    monkeypatch.chdir(tmp_path)
    start, checkpoints = load_policy(sft_folder), tmp_path / "checkpoints"
    whole = training(name, start, tiny_data, None)
    whole.train()
    broken = training(name, start, tiny_data, stop)
    assert raises_interrupted(lambda: broken.train(checkpoints=checkpoints, digest="d"))
    written = [path for path in checkpoints.rglob("*") if path.is_file()]
    assert any(path.parent.name.startswith("checkpoint-") for path in written)
    assert {path.suffix for path in written} == {".json", ".safetensors"}
    for folder in checkpoints.glob("checkpoint-*"):
        for planted in PLANTED:
            (folder / planted).write_bytes(PICKLE)
    resumed = training(name, start, tiny_data, None)
    with watch:
        resumed.train(checkpoints=checkpoints, digest="d")
    assert not (tmp_path / "executed").exists()
    assert same_weights(whole.policy, resumed.policy)


def test_a_policy_is_loaded_and_ranks_without_unpickling(
    sft_folder: Path, save_prepared: PreparedData, watch: Watch
) -> None:
    for planted in PLANTED:
        (sft_folder / planted).write_bytes(PICKLE)
    with watch:
        recommender = load_recommender(sft_folder, save_prepared.folder / "items.parquet")
        assert len(recommender.recommend([["i1", "i2"]], k=3)[0].items) == 3
    assert not Path("executed").exists()


def test_a_model_of_the_registry_is_loaded_without_unpickling(
    sft_folder: Path, save_prepared: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    import mlflow
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    package = ROOT / "rl4rec"
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(package / "serve" / "mlflow_model.py"),
        artifacts={"policy": str(sft_folder), "items": str(save_prepared.folder / "items.parquet")},
        pip_requirements=[],
    )
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in (".pkl", ".bin", ".pt", ".pth")]
    with watch:
        model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
        answer = model.predict(pd.DataFrame({"history": [["i1", "i2"]]}))
    assert len(answer["items"][0]) == 10


def test_every_loader_refuses_weights_in_pickle_form(
    sft_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    monkeypatch.chdir(tmp_path)
    (sft_folder / "model.safetensors").rename(tmp_path / "kept")
    (sft_folder / "pytorch_model.bin").write_bytes(PICKLE)
    with watch, pytest.raises(UserError, match=r"no model\.safetensors"):
        load_policy(sft_folder)
    with watch, pytest.raises(OSError, match="safetensors"):
        SlatePolicy.from_pretrained(sft_folder)  # as the trainers load their start
    (sft_folder / "model.safetensors").write_bytes(PICKLE)
    with watch, pytest.raises(UserError, match="cannot be read as a policy"):
        load_policy(sft_folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("place", ["config", "language model"])
def test_code_of_a_folders_own_is_not_run(sft_folder: Path, tmp_path: Path, place: str) -> None:
    """In a process of its own: transformers would ask on the terminal whether to run it."""
    (sft_folder / "evil.py").write_text("open('executed', 'w')\nclass Config: pass\nclass Model: pass\n")
    (tmp_path / "models").mkdir()
    sft_folder.rename(tmp_path / "models" / "sft")
    change = set_config if place == "config" else set_inner
    change(auto_map={name: "evil.Model" for name in ("AutoModelForCausalLM", "AutoModel", "AutoConfig")})(tmp_path)
    for code in (
        "from pathlib import Path; from rl4rec.model.load import load_policy; load_policy(Path('models/sft'))",
        "from rl4rec.model.policy import SlatePolicy; SlatePolicy.from_pretrained('models/sft')",
    ):
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            input="y\n",
            text=True,
            capture_output=True,
            timeout=100,
            check=False,
        )
    assert not (tmp_path / "executed").exists()
