"""The callback for Hugging Face Transformers, in real trainings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgelean.errors import InputError, MissingError
from edgelean.profile import load_profile

transformers = pytest.importorskip("transformers", reason="not installed: pip install 'edgelean[transformers]'")
pytest.importorskip("accelerate", reason="the trainer of Transformers needs it: pip install 'edgelean[transformers]'")
integration = pytest.importorskip("edgelean.integrations.transformers")

# Transformers warns of pinned memory where there is no GPU.
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES, BATCH, EPOCHS = 256, 16, 2
PROFILE = load_profile("raspberry-pi-5").with_control({"score": "magnitude", "events": "3"})
BUDGETS = {"latency": "70%", "energy": "70%"}


class Classifier(nn.Module):
    """Takes and gives what the trainer of Transformers wants."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(12, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))

    def forward(self, features, labels=None):
        logits = self.net(features)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def data():
    torch.manual_seed(1)
    x = torch.randn(SAMPLES, 12)
    return [{"features": row, "labels": label} for row, label in zip(x, x[:, :5].argmax(1), strict=True)]


@pytest.fixture(autouse=True)
def _away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a bundle goes to where one is


def callback(**options):
    return integration.EdgeleanCallback(PROFILE, **{**BUDGETS, **options})


def train(folder, mine, *others, model=None, evaluates=True, go_on=None, **options):
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 4}
    asked = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 2e-3,
        "eval_strategy": "epoch" if evaluates else "no",
        "dataloader_pin_memory": False,
        **quiet,
        **options,
    }
    model = model or Classifier()
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(str(folder / "trainer"), **asked),
        train_dataset=data(),
        eval_dataset=data() if evaluates else None,
        compute_metrics=lambda told: {"hits": float((told.predictions.argmax(1) == told.label_ids).mean())},
        callbacks=[mine, *others],
    )
    trainer.train(resume_from_checkpoint=go_on)
    return model, trainer


def steps_of(lean, kind):
    return [event["step"] for event in lean.events if event["event"] == kind]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A training with accumulation, clipping, a schedule and mixed precision."""
    folder = tmp_path_factory.mktemp("transformers")
    mine = callback(out=folder / "run", name="classifier")
    model, trainer = train(folder, mine, gradient_accumulation_steps=2, max_grad_norm=1.0, bf16=True)
    return folder / "run", mine, model, trainer


def test_trained_model_is_within_its_budgets_bundled_and_reported(made):
    folder, mine, model, _ = made
    assert [verdict.outcome for verdict in mine.delivery.verdicts] == ["met", "met"]
    assert all(check.passed for check in mine.delivery.checks)
    assert mine.report.recipe == "classifier"
    assert mine.report.lean.parameters == sum(p.numel() for p in model.parameters()) < mine.report.full_size.parameters
    assert mine.report.epochs_history
    assert (folder / "report.html").is_file()
    assert (folder / "bundle" / "model.onnx").is_file()


def test_steps_of_the_optimizer_are_counted_and_not_batches(made):
    _, mine, _, trainer = made
    assert mine.lean.steps == trainer.state.global_step == EPOCHS * SAMPLES // BATCH // 2
    assert steps_of(mine.lean, "cut")


def test_cuts_are_judged_on_the_validation_data_from_the_first_one_on(made):
    _, mine, _, _ = made
    cuts = [event for event in mine.lean.events if event["event"] == "cut"]
    assert all(event["metric_before"] is not None for event in cuts)


def test_training_goes_on_from_a_checkpoint_with_what_the_loop_remembers(tmp_path):
    # So short a training would take back the cut before the checkpoint, and the shapes would tell nothing.
    patient = PROFILE.model_copy(update={"accuracy": PROFILE.accuracy.model_copy(update={"cut_tolerance": 0.1})})
    half = integration.EdgeleanCallback(patient, **BUDGETS)
    lean_model, _ = train(tmp_path, half, _StopAfterOneEpoch(), save_strategy="epoch")
    assert steps_of(half.lean, "cut")
    again = integration.EdgeleanCallback(patient, **BUDGETS)
    model, trainer = train(tmp_path, again, go_on=True, save_strategy="epoch")
    assert trainer.state.global_step == again.lean.steps == EPOCHS * SAMPLES // BATCH
    assert min(steps_of(again.lean, "cut"), default=99) > SAMPLES // BATCH
    for mine, other in zip(model.parameters(), lean_model.parameters(), strict=True):
        assert all(size <= before for size, before in zip(mine.shape, other.shape, strict=True))
    assert [verdict.outcome for verdict in again.delivery.verdicts] == ["met", "met"]


class _StopAfterOneEpoch(transformers.TrainerCallback):
    def on_epoch_end(self, args, state, control, **_):
        control.should_training_stop = True


def test_checkpoint_without_the_loop_is_refused_by_name(tmp_path):
    train(tmp_path, _StopAfterOneEpoch(), save_strategy="epoch")
    with pytest.raises(MissingError, match="no folder 'edgelean'"):
        train(tmp_path, callback(), go_on=True)


def test_best_model_from_before_the_last_cut_does_not_come_back(tmp_path):
    mine = callback(monitor="eval_hits", out=tmp_path / "run")
    model, _ = train(
        tmp_path, mine, _Worse(), save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4,
        load_best_model_at_end=True, metric_for_best_model="eval_order", greater_is_better=True,
    )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) == mine.report.lean.parameters
    assert any(caveat.startswith("The best model of the trainer") for caveat in mine.report.caveats)


class _Worse(transformers.TrainerCallback):
    """Makes the evaluation before the second checkpoint the best one."""

    def on_evaluate(self, args, state, control, metrics=None, **_):
        metrics["eval_order"] = -abs(state.global_step - 4.0)


def test_logged_metric_is_asked_for_before_each_cut(tmp_path):
    mine = callback(monitor="eval_hits")
    train(tmp_path, mine)
    cuts = [event for event in mine.lean.events if event["event"] == "cut"]
    assert len(cuts) > 1  # more often than the trainer evaluates by itself before its last step
    assert all(event["metric_before"] is not None for event in cuts)


def test_no_data_to_verify_on_is_refused_before_the_training(tmp_path):
    with pytest.raises(InputError, match="no data to verify"):
        train(tmp_path, callback(), evaluates=False)


def test_test_split_alone_is_enough(tmp_path):
    mine = callback(test=(torch.stack([row["features"] for row in data()]), torch.stack([r["labels"] for r in data()])))
    train(tmp_path, mine, evaluates=False)
    assert {check.samples for check in mine.delivery.checks} == {SAMPLES}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"features": torch.ones(2, 12)}, "has no labels"),
        ({"pixels": torch.ones(2, 12), "labels": torch.ones(2)}, "takes features.*a batch has pixels, labels"),
    ],
)
def test_batch_that_the_model_does_not_take_is_named(batch, words):
    with pytest.raises(InputError, match=words):
        integration.inputs_and_labels(Classifier(), batch)
