"""What the Trainer of transformers is within a run: its steps are the run's, its checkpoints hold no code."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from common.errors import UserError
from common.training.checkpoint import (
    StateTree,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
)
from common.training.interruption import Checkpointer
from common.training.progress import Progress
from common.training.random_keys import Purpose, seed_global
from common.training.run import Run
from common.training.runtime import random_state, restore_random_state


class TrainerInRun(Trainer):
    """To be put before a Trainer among the bases: checkpoints of safetensors and JSON, written by the main process.

    The Trainer's own pickle optimizer, schedule and random state, and unpickle them to go on. Those of FSDP and
    DeepSpeed, whose parts lie in several processes, stay in the formats of these.
    """

    def store_flos(self) -> None:
        """Nothing: it would wait for all processes, and the main one alone writes a run's checkpoints."""

    @property
    def in_parts(self) -> bool:
        """Whether each process has a part of a checkpoint to write."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.in_parts:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = StateTree()
        state.put("optimizer", *optimizer_state(self.optimizer))  # type: ignore[arg-type]
        state.put("scheduler", {}, self.lr_scheduler.state_dict())  # type: ignore[union-attr]
        save_checkpoint(Path(output_dir) / "optimizer", state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.in_parts:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = load_checkpoint(Path(checkpoint) / "optimizer")
        load_optimizer_state(self.optimizer, *state.get("optimizer"))  # type: ignore[arg-type]
        schedule = {k: v for k, v in state.get("scheduler")[1].items() if k != "base_lrs"}  # that of the options now
        self.lr_scheduler.load_state_dict(schedule)  # type: ignore[union-attr]

    def _save_scaler(self, output_dir: str) -> None:
        if getattr(self.accelerator, "scaler", None) is not None:
            state = StateTree()
            state.put("scaler", {}, self.accelerator.scaler.state_dict())
            save_checkpoint(Path(output_dir) / "scaler", state)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(load_checkpoint(Path(checkpoint) / "scaler").get("scaler")[1])

    def _save_rng_state(self, output_dir: str) -> None:
        if not self.args.should_save:
            return
        state = StateTree()
        state.put("random", *random_state())
        save_checkpoint(Path(output_dir) / "random", state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:  # of the main process: what others draw is named, see RunCallback
            restore_random_state(*load_checkpoint(Path(checkpoint) / "random").get("random"))


class TrainerStage:
    """A stage of a run that a Trainer takes the steps of: how its checkpoints belong to those of the run.

    Args:
        name: of the stage, in the log and in checkpoints.
        trainer: of the class above.
    """

    def __init__(self, name: str, trainer: Any) -> None:
        self._name = name
        self.trainer = trainer
        trainer.remove_callback(PrinterCallback)
        self._resume_from: Path | None = None

    @property
    def steps_done(self) -> int:
        return int(self.trainer.state.global_step)

    def state_values(self) -> dict[str, Any]:
        """What a checkpoint holds beside the Trainer's own."""
        return {}

    def save_state(self, state: StateTree) -> None:
        """Write the Trainer's checkpoint and note which one it is."""
        self.trainer._save_checkpoint(self.trainer.model, None)
        state.put(self._name, {}, {"steps": self.steps_done} | self.state_values())

    def load_state(self, state: StateTree) -> None:
        """Go on from what `save_state` noted."""
        _, values = state.get(self._name)
        output = Path(self.trainer.args.output_dir)
        folder = (output if state.run is None else state.run / output.name) / f"checkpoint-{values['steps']}"
        if not folder.is_dir():
            raise ValueError(f"'{folder}' is gone")
        self._resume_from = folder

    def take_steps(self, callback: TrainerCallback) -> None:
        """All steps that are left.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
            UserError: what was learnt is no numbers.
        """
        self.trainer.add_callback(callback)
        try:
            self._take_steps()
        except RuntimeError:  # such as of samples that are to be drawn from no numbers
            self._check_weights()
            raise
        self._check_weights()

    def _check_weights(self) -> None:
        if not all(bool(weights.isfinite().all()) for weights in self.trainer.model.parameters()):
            raise UserError(
                f"{self._name} learning: weights are not finite after {self.steps_done} steps; a lower learning rate "
                "may help"
            )

    def _take_steps(self) -> None:
        if self._resume_from is None:
            self.trainer.train()
            return
        arguments, rows = self.trainer.args, self.trainer.get_train_dataloader()
        *_, max_steps = self.trainer.set_initial_training_values(arguments, rows)
        state = TrainerState.load_from_json(str(self._resume_from / TRAINER_STATE_NAME))
        if state.global_step < max_steps:
            self.trainer.train(resume_from_checkpoint=str(self._resume_from))
            return
        # The Trainer would take a step more, within an epoch, before it sees that there is none left.
        self.trainer._load_from_checkpoint(str(self._resume_from))
        self.trainer.state = state


class RunCallback(TrainerCallback):
    """The Trainer's steps as those of a run: its log, its checkpoints, its signals, its random numbers.

    Args:
        run: the run.
        checkpointer: to be told of each step.
        phase: of its log.
        logged: names of the run's log -> the Trainer's own.
        purpose: of what a step draws; its key is seed, step, process. No process's state is then needed to go on.
        steps_before: optimizer steps of the run before this stage.
    """

    def __init__(
        self,
        run: Run,
        checkpointer: Checkpointer,
        phase: str,
        logged: Mapping[str, str],
        purpose: Purpose,
        steps_before: int = 0,
    ) -> None:
        self._run, self._checkpointer, self._phase, self._logged = run, checkpointer, phase, logged
        self._purpose, self._steps_before = purpose, steps_before
        self._progress: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._progress = Progress(state.max_steps, f"{self._phase} learning", initial=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress.close()
        self._checkpointer.after_step(self._steps_before + state.global_step, due=self._checkpointer.periodic)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Not at the end of the step before, whose figures are logged after it.
        if state.global_step:
            self._checkpointer.after_step(self._steps_before + state.global_step)
        seed_global(self._purpose, self._run.options.seed, state.global_step, self._run.engine.rank)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        found = {name: logs[theirs] for name, theirs in self._logged.items() if logs and logs.get(theirs) is not None}
        norm = found.get(f"{self._phase}/gradient_norm", 0.0)
        is_scaled = self._run.options.mixed_precision == "fp16"  # the scale is found by steps that overflow
        if not math.isfinite(norm) and not is_scaled:
            raise UserError(
                f"{self._phase} step {state.global_step}: the gradient is not finite; a lower learning rate may help"
            )
        if found:
            self._run.log.log(self._phase, 0, state.global_step, **found)
