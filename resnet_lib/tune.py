"""Choose a network's training settings with Optuna: one study, any number of processes, judged once on test pictures.

python -m resnet_lib.tune --dataset pictures.zip --minutes 30
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from pathlib import Path

from resnet_lib import augment, data, plots, resnets, stats, train
from resnet_lib.paths import digest, write_atomically

# What is searched: lowest and highest value, on a logarithmic scale. `momentum` is searched by its distance to 1.
SPACE = {
    "learning_rate": (1e-3, 3.0),
    "weight_decay": (1e-5, 1e-1),
    "momentum": (0.5, 0.99),
    "warmup": (0.02, 0.5),
    "label_smoothing": (1e-3, 0.3),
}
SAMPLERS = ("random", "sobol", "tpe", "gp", "cmaes")
STARTUP = 5  # trials that a model-based sampler draws at random first, and that a pruner lets run to their end
HEARTBEAT_S = 10  # a process says as often that its trial is alive; a trial unheard of for three times as long is dead
SEARCH_SEED = 0  # of every trial's training: what differs between trials is their settings alone
FINAL_SEEDS = (1, 2, 3)  # of the trainings that are judged on test pictures: none that the search saw


@dataclass(frozen=True)
class Search:
    """What is searched, beside the pictures; with them it names the study, so that no other search adds to it."""

    epochs: int = 10  # of each trial, at most
    batch_size: int = 128  # pictures a step; not searched: its best learning rate moves with it
    depth: int = 8  # of the CIFAR ResNet, 6n + 2
    width: int = 16  # of its first stage, channels
    flips: bool = False  # mirror and shift training pictures; not for digits or letters
    sampler: str = "tpe"  # one of SAMPLERS
    pruned: bool = True  # stop a trial whose validation error is above the median of the others at that epoch
    names: tuple[str, ...] = tuple(SPACE)  # the settings searched, of SPACE; others keep TrainConfig's default
    device: str = "auto"

    def __post_init__(self):
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler={self.sampler!r} is not one of {', '.join(map(repr, SAMPLERS))}")
        if not self.names or set(self.names) - set(SPACE):
            raise ValueError(f"names={self.names} must hold at least one of {', '.join(SPACE)}, and no other")
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")
        resnets.cifar_config(self.depth)
        self.config()

    def config(self, **chosen) -> train.TrainConfig:
        return train.TrainConfig(epochs=self.epochs, batch_size=self.batch_size, device=self.device, **chosen)


def library():
    """Optuna, imported where it is used, without the warning of tqdm in a notebook that has no widgets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna
    return optuna


def sampler(name: str, seed: int | None = None):
    """An Optuna sampler with the arguments that decide its proposals written out: its defaults change by version.

    Source: Bergstra et al. 2011 (TPE); Optuna's own Gaussian process; Hansen 2016, arXiv:1604.00772 (CMA-ES).
    """
    of = library().samplers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna_warning())
        made = {
            "random": lambda: of.RandomSampler(seed=seed),
            "sobol": lambda: of.QMCSampler(
                qmc_type="sobol",
                scramble=True,
                seed=seed,
                warn_asynchronous_seeding=False,
                warn_independent_sampling=False,
            ),
            "tpe": lambda: of.TPESampler(
                n_startup_trials=STARTUP,
                n_ei_candidates=24,
                multivariate=True,
                group=False,
                constant_liar=True,
                seed=seed,
            ),
            "gp": lambda: of.GPSampler(n_startup_trials=STARTUP, deterministic_objective=False, seed=seed),
            "cmaes": lambda: of.CmaEsSampler(n_startup_trials=1, warn_independent_sampling=False, seed=seed),
        }
        return made[name]()


def pruner(pruned: bool, epochs: int):
    optuna = library()
    if not pruned:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(
        n_startup_trials=STARTUP, n_warmup_steps=max(1, epochs // 3), n_min_trials=STARTUP
    )


def optuna_warning() -> type[Warning]:
    """The class of Optuna's warnings that a feature may change."""
    optuna = library()

    return optuna.exceptions.ExperimentalWarning


def suggested(trial, names: tuple[str, ...]) -> dict[str, float]:
    """A trial's settings, as TrainConfig names them."""
    found = {}
    for name in names:
        low, high = SPACE[name]
        if name == "momentum":
            found[name] = 1 - trial.suggest_float("one_minus_momentum", 1 - high, 1 - low, log=True)
        else:
            found[name] = trial.suggest_float(name, low, high, log=True)
    return found


def fitted(pictures: data.Dataset, search: Search, config: train.TrainConfig, seed: int, report=None) -> train.Fit:
    """Train the search's network; `report`, where given, is called as in `watched`."""
    shape = {"in_channels": pictures.train.images.shape[1], "num_classes": len(pictures.class_names)}
    widths = tuple(search.width * k for k in (1, 2, 4))
    reach = max(1, min(pictures.train.images.shape[2:]) // 8)
    task = train.classification(config.label_smoothing)
    return train.fit(
        lambda: resnets.resnet_cifar(search.depth, widths=widths, **shape),
        pictures,
        config,
        seed=seed,
        task=watched(task, report) if report else task,
        augmentation=(lambda x, g: augment.random_crop_flip(x, reach, 0.5, g)) if search.flips else None,
        on_divergence="record",
        progress=False,
    )


def watched(task: train.Task, report: Callable[[int, float], None]) -> train.Task:
    """The task; when an epoch begins, `report` gets the number of those before and the last one's validation error.

    What `report` raises ends the training. After the last epoch nothing is reported: `fit` returns it.
    """
    seen, epochs = [], [0]

    def told(model, images, labels, generator):  # training steps compute the task inside, so this one only validates
        measured = task(model, images, labels, generator)
        seen.append((measured["error"].item(), len(labels)))
        return measured

    def after_step(measured):
        if seen:
            epochs[0] += 1
            error = sum(e * n for e, n in seen) / sum(n for _, n in seen)
            seen.clear()
            report(epochs[0], error)

    told.inside, told.after_step = task, after_step
    return told


def objective(pictures: data.Dataset, search: Search, seed: int = SEARCH_SEED) -> Callable[..., float]:
    """What Optuna minimises: the validation error after the last epoch; a training that fails counts as guessing."""
    chance = 1 - 1 / len(pictures.class_names)

    def error_of(trial) -> float:
        optuna = library()

        def report(epoch: int, error: float) -> None:
            trial.report(error, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        config = search.config(**suggested(trial, search.names))
        row = fitted(pictures, search, config, seed, report if search.pruned else None).rows[-1]
        return chance if row["diverged"] else row["val_error"]

    return error_of


def open_study(pictures: data.Dataset, search: Search, storage: str, seed: int | None = None):
    """The study of these pictures and this search in a storage, made where it is not there yet.

    Args:    storage: a database URL as SQLAlchemy takes it; processes and machines that give the same one share it.
    Raises:  ValueError where the storage cannot be opened.
    """
    optuna = library()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    what = {name: value for name, value in asdict(search).items() if name not in ("sampler", "device")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna_warning())
        try:
            kept = optuna.storages.RDBStorage(
                storage,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=3 * HEARTBEAT_S,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=3),
            )
        except Exception as error:  # each database driver has errors of its own
            raise ValueError(f"storage={storage!r} cannot be opened: {error}") from error
        return optuna.create_study(
            storage=kept,
            study_name=f"{pictures.name}-{digest([pictures.fingerprint, what])}",
            sampler=sampler(search.sampler, seed),
            pruner=pruner(search.pruned, search.epochs),
            load_if_exists=True,
        )


class Enough(Exception):
    """Raised in a trial that others made superfluous between its proposal and its start."""


def counted(study) -> list:
    """The trials that have come to their end, whichever process made them; one that was killed is not among them."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def spent_min(study) -> float:
    """Minutes that the counted trials took, of all processes together."""
    return sum(trial.duration.total_seconds() for trial in counted(study)) / 60


def run(study, error_of: Callable[..., float], minutes: float, trials: int = 0) -> None:
    """Make trials until the study has its minutes, or its trials; those of other processes count as well.

    A killed process costs the trial under way: another process, or the next run, makes it again and counts it once.
    Minutes are checked between trials, so each process may exceed them by one trial.
    """
    from optuna.storages import fail_stale_trials
    from optuna.trial import TrialState

    alive = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)

    def in_turn(trial) -> float:
        before = [t for t in study.get_trials(deepcopy=False, states=alive) if t.number < trial.number]
        if trials and len(before) >= trials:
            raise Enough
        return error_of(trial)

    def over() -> bool:
        return spent_min(study) >= minutes or 0 < trials <= len(counted(study))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna_warning())
        while not over():
            if trials and len(study.get_trials(deepcopy=False, states=alive)) >= trials:
                time.sleep(0.5)  # the last ones run elsewhere: they may die
                fail_stale_trials(study)
                continue
            study.optimize(in_turn, n_trials=1, catch=(Enough,))
        while study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            time.sleep(0.5)  # the best may be among those that other processes still make
            fail_stale_trials(study)


def best_config(study, search: Search) -> train.TrainConfig:
    """The settings of the lowest validation error.

    Raises: ValueError where no trial came to its end.
    """
    from optuna.trial import FixedTrial

    if not any(trial.state.name == "COMPLETE" for trial in counted(study)):
        raise ValueError("no trial came to its end: give more minutes, or fewer epochs")
    return search.config(**suggested(FixedTrial(study.best_params), search.names))


def importances(study) -> dict[str, float]:
    """Shares of the settings in what separates the better trials from the others; {} for too few trials.

    Source: PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    values = {trial.value for trial in counted(study) if trial.state.name == "COMPLETE"}
    if len(values) < 4:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where a quantile holds few trials
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())


def judge(study, pictures: data.Dataset, search: Search) -> dict:
    """Test errors of the best settings and of the defaults, trained anew from seeds that the search never saw; once.

    The result is kept in the study: who asks again gets the same, whatever trials were added since.
    Returns: settings; best and default, the test error of each seed; gain, the default's minus the best's, in words.
    """
    if kept := study.user_attrs.get("judged"):
        return kept
    errors, chosen = {}, best_config(study, search)
    for name, config in (("best", chosen), ("default", search.config())):
        errors[name] = []
        for seed in FINAL_SEEDS:
            fit = fitted(pictures, search, config, seed)
            found = train.evaluate(fit.model, pictures, pictures.test, config)["error"]
            errors[name].append(1 - 1 / len(pictures.class_names) if fit.rows[-1]["diverged"] else found)
    gain = stats.paired(errors["default"], errors["best"], unit="error")
    judged = {"settings": as_parameters(chosen), **errors, "gain": str(gain), "trials": len(counted(study))}
    study.set_user_attr("judged", judged)
    return judged


def as_parameters(config: train.TrainConfig) -> dict:
    """The settings as TrainConfig and a chapter's parameters name them."""
    names = ("epochs", "batch_size", *SPACE)
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name in names}


def draw(study) -> str:
    """Validation error trial by trial, and against each setting; the lowest is marked. Returns the caption."""
    done = counted(study)
    ended = [t for t in done if t.state.name == "COMPLETE"]
    names = sorted(ended[0].params)
    with plots.figure(len(names) + 1, 1, height=1.7 * (len(names) + 1)) as (_, axes):
        best, so_far = min(ended, key=lambda t: t.value), list(accumulate((t.value for t in ended), min))
        axes[0].step([t.number for t in ended], so_far, where="post", color=plots.ORANGE, label="best so far")
        for ax, name in zip(axes, ["trial", *names], strict=True):
            ax.plot([_at(t, name) for t in ended], [t.value for t in ended], "o", color=plots.BLUE, ms=4, label="trial")
            ax.plot([_at(best, name)], [best.value], "D", color=plots.ORANGE, ms=8, clip_on=False)
            ax.set(xlabel=name.replace("_", " "), ylabel="error, %")
            if name != "trial":
                ax.set_xscale("log")
                plots.log_axis(ax.xaxis, [t.params[name] for t in ended])
        axes[0].legend()
        plots.hundredths(*(ax.yaxis for ax in axes))
    stopped = len(done) - len(ended)
    return f"The diamond is the best of {len(ended)} trials; {stopped} more were stopped early and are not drawn."


def _at(trial, name: str) -> float:
    return trial.number if name == "trial" else trial.params[name]


def save(study, search: Search, judged: dict, pictures: data.Dataset, folder: Path) -> Iterator[Path]:
    """Write best.yml, result.json and search.png; yields each path."""
    import yaml

    said = f"# {pictures.name}: test error {_mean(judged['best'])}, with the defaults {_mean(judged['default'])}\n"
    result = judged | {"test_pictures": len(pictures.test), "importances": importances(study), "search": asdict(search)}
    texts = {"best.yml": said + yaml.safe_dump(judged["settings"], sort_keys=False), "result.json": json.dumps(result)}
    for name, text in texts.items():
        write_atomically(folder / name, text)
        yield folder / name
    with plots.captured() as drawn:
        draw(study)
    (folder / "search.png").write_bytes(drawn[-1])
    yield folder / "search.png"


def _mean(errors: list[float]) -> str:
    return str(stats.interval(errors, unit="share"))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m resnet_lib.tune", description=__doc__.splitlines()[0])
    made.add_argument("--dataset", required=True, help="a known name, a folder of class folders, or an archive of one")
    made.add_argument("--minutes", type=float, default=30, help="of training, all processes together")
    made.add_argument("--trials", type=int, default=0, help="at most; 0 sets no limit")
    made.add_argument("--storage", default="", help="database URL to share; default: a file in the folder")
    made.add_argument("--folder", type=Path, default=Path("tuned"), help="for best.yml, result.json, search.png")
    made.add_argument(
        "--seed", type=int, default=None, help="of the proposals; processes of one study need different ones"
    )
    made.add_argument("--image-size", type=int, default=None, help="pixels a side to resize to")
    made.add_argument("--train-size", type=int, default=0, help="training pictures; 0 takes all")
    for field in (f for f in fields(Search) if f.type in (int, str)):
        made.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    made.add_argument("--flips", action="store_true", help="mirror and shift training pictures")
    made.add_argument("--no-pruning", dest="pruned", action="store_false")
    return made


def main(arguments: list[str] | None = None) -> int:
    given = vars(parser().parse_args(arguments))
    try:
        if not (given["minutes"] > 0 and given["trials"] >= 0):
            raise ValueError(f"minutes={given['minutes']} must be above 0, trials={given['trials']} at least 0")
        search = Search(**{f.name: given[f.name] for f in fields(Search) if f.name in given})
        pictures = data.load(given["dataset"], image_size=given["image_size"], train_size=given["train_size"])
        search = replace(search, batch_size=min(search.batch_size, len(pictures.train)))
        given["folder"].mkdir(parents=True, exist_ok=True)
        storage = given["storage"] or f"sqlite:///{given['folder'] / 'study.db'}"
        study = open_study(pictures, search, storage, given["seed"])
    except ModuleNotFoundError as error:
        print(f"error: {error}; the search needs Optuna: pip install optuna", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        run(study, objective(pictures, search), given["minutes"], given["trials"])
        judged = judge(study, pictures, search)
        print(f"{len(counted(study))} trials, {spent_min(study):.1f} minutes of training")
        print(f"test error {_mean(judged['best'])}, with the default settings {_mean(judged['default'])}")
        print(f"gain of the search: {judged['gain']}")
        weights = importances(study).items()
        print(f"importance: {', '.join(f'{name} {share:.0%}' for name, share in weights) or 'too few trials to tell'}")
        for path in save(study, search, judged, pictures, given["folder"]):
            print(path)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the trials that are done", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
