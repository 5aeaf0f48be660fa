"""The callback for Lightning, in real trainings."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edgelean.errors import InputError
from edgelean.profile import load_profile

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: pip install 'edgelean[lightning]'")
EdgeleanCallback = pytest.importorskip("edgelean.integrations.lightning").EdgeleanCallback

# Lightning calls what torch has deprecated, and says that data loaders might have more workers.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES, BATCH, EPOCHS = 256, 16, 2
PROFILE = load_profile("raspberry-pi-5").with_control({"score": "magnitude", "events": "3"})
BUDGETS = {"latency": "70%", "energy": "70%"}


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def loader(shuffle=False):
    torch.manual_seed(1)
    x = torch.randn(SAMPLES, 12)
    return DataLoader(TensorDataset(x, x[:, :5].argmax(1)), BATCH, shuffle=shuffle)


@pytest.fixture(autouse=True)
def _away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a bundle goes to where one is


def callback(**options):
    return EdgeleanCallback(PROFILE, **{**BUDGETS, **options})


def trainer(folder, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    asked = {"max_epochs": EPOCHS, "enable_checkpointing": False, **quiet, **options}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **asked)


def fit(folder, *callbacks, module=None, ckpt_path=None, **options):
    module = module or Classifier()
    made = trainer(folder, *callbacks, **options)
    made.fit(module, loader(shuffle=True), loader(), ckpt_path=ckpt_path)
    return module, made


def steps_of(lean, kind):
    return [event["step"] for event in lean.events if event["event"] == kind]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A training with accumulation, clipping, a schedule and mixed precision."""
    folder = tmp_path_factory.mktemp("lightning")
    mine = callback(out=folder / "run", name="classifier")
    module, made = fit(folder, mine, accumulate_grad_batches=2, gradient_clip_val=1.0, precision="bf16-mixed")
    return folder / "run", mine, module, made


def test_trained_model_is_within_its_budgets_bundled_and_reported(made):
    folder, mine, module, _ = made
    assert [verdict.outcome for verdict in mine.delivery.verdicts] == ["met", "met"]
    assert all(check.passed for check in mine.delivery.checks)
    assert mine.report.recipe == "classifier"
    assert mine.report.lean.parameters == sum(p.numel() for p in module.parameters()) < mine.report.full_size.parameters
    assert [point.epoch for point in mine.report.epochs_history] == [1, 2]
    assert (folder / "report.html").is_file()
    assert (folder / "bundle" / "model.onnx").is_file()


def test_steps_of_the_optimizer_are_counted_and_not_batches(made):
    _, mine, _, trainer = made
    assert mine.lean.steps == trainer.global_step == EPOCHS * SAMPLES // BATCH // 2
    assert steps_of(mine.lean, "cut")


def test_optimizer_holds_the_lean_parameters(made):
    *_, module, trainer = made
    (optimizer,) = trainer.optimizers
    for parameter in module.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_training_goes_on_from_a_checkpoint_with_what_the_loop_remembers(tmp_path):
    first = callback()
    lean_module, _ = fit(
        tmp_path, first, pl.callbacks.ModelCheckpoint(tmp_path / "kept", save_last=True), enable_checkpointing=True
    )
    half = callback()
    stop = pl.callbacks.ModelCheckpoint(tmp_path / "half", filename="one", save_on_train_epoch_end=True)
    fit(tmp_path, half, stop, _StopAfterOneEpoch(), enable_checkpointing=True)
    again = callback()
    module, made = fit(tmp_path, again, ckpt_path=str(tmp_path / "half" / "one.ckpt"))
    assert made.global_step == again.lean.steps == EPOCHS * SAMPLES // BATCH
    cuts = steps_of(half.lean, "cut") + steps_of(again.lean, "cut")
    assert steps_of(half.lean, "cut")
    assert cuts == steps_of(first.lean, "cut")
    assert [p.shape for p in module.parameters()] == [p.shape for p in lean_module.parameters()]


class _StopAfterOneEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def test_early_stopping_ends_with_a_bundle_of_what_there_is(tmp_path):
    mine = callback(latency="99%", energy="99%", out=tmp_path / "run")
    fit(tmp_path, mine, pl.callbacks.EarlyStopping("val_acc", mode="max", patience=0, min_delta=2.0), max_epochs=9)
    assert mine.report is not None
    assert any(caveat.startswith("The training ended after") for caveat in mine.report.caveats)


def test_cuts_that_are_judged_by_a_logged_metric_wait_for_the_next_validation(tmp_path):
    mine = callback(monitor="val_acc")
    fit(tmp_path, mine, val_check_interval=4)
    cuts = [event for event in mine.lean.events if event["event"] == "cut"]
    assert cuts
    assert all(event["metric_before"] is not None for event in cuts)
    assert len({(step - 1) // 4 for step in steps_of(mine.lean, "cut")}) == len(cuts)


def test_named_part_of_a_module_is_cut_where_the_training_calls_that(tmp_path):
    with pytest.raises(InputError, match="network=one of 'net'"):
        fit(tmp_path, callback(), module=Called())
    mine = callback(network="net")
    module, _ = fit(tmp_path, mine, module=Called())
    assert mine.delivery is not None
    assert sum(p.numel() for p in module.parameters()) < sum(p.numel() for p in Classifier().parameters())


class Called(Classifier):
    """Its training goes past its forward."""

    def training_step(self, batch, index):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metric": "acuracy"}, "metric 'acuracy' is not known"),
        ({"monitor": "val_acc", "validate": float}, "either validate or monitor"),
    ],
)
def test_option_that_cannot_be_is_refused_at_once(options, words):
    with pytest.raises(InputError, match=words):
        callback(**options)


def test_metric_that_is_not_logged_is_named_beside_those_that_are(tmp_path):
    with pytest.raises(InputError, match=r"monitor='accuracy' was not logged.*val_acc"):
        fit(tmp_path, callback(monitor="accuracy"))


def test_checkpoint_of_other_shapes_that_nothing_of_edgelean_is_in_is_refused(tmp_path):
    module = Classifier()
    made = trainer(tmp_path, max_epochs=1)
    made.fit(module, loader(), loader())
    made.save_checkpoint(tmp_path / "full.ckpt")
    other = Classifier()
    other.net[2] = nn.Linear(256, 128)
    other.net[4] = nn.Linear(128, 5)
    with pytest.raises(InputError, match="other shapes, and nothing of edgelean"):
        fit(tmp_path, callback(), module=other, ckpt_path=str(tmp_path / "full.ckpt"))


def test_no_data_to_verify_on_is_refused_before_the_training(tmp_path):
    with pytest.raises(InputError, match="no data to verify"):
        trainer(tmp_path, callback()).fit(Classifier(), loader())
