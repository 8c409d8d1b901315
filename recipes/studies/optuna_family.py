"""Optuna searches the four weights of TSV-M on the small family. Merges and scores are made in memory; no file is written.

    pip install weldment optuna
    python recipes/studies/optuna_family.py [TRIALS]

Trials are compared on the validation half of the tasks; the best one is scored on the test half, once.
"""

import sys
from pathlib import Path

import optuna
import weldment

STUDIES = Path(__file__).resolve().parent
SKILLS = ["sort", "reverse", "add", "cipher"]
TASKS = [STUDIES / "tasks" / f"{skill}.jsonl" for skill in SKILLS]


def recipe(weights):
    """The recipe of a trial: weights by skill."""
    family = STUDIES.parent / "family"
    models = [{"model": str(family / skill), "parameters": {"weight": weights[skill]}} for skill in SKILLS]
    return {"merge_method": "tsvm", "base_model": str(family / "base"), "models": models, "dtype": "bfloat16"}


def accuracy(weights, split):
    """The mean accuracy of a merge over the tasks."""
    report = weldment.eval(recipe(weights), tasks=TASKS, split=split)
    return report.details.mean_accuracy.value


def search(trials, seed=0):
    """Searches, and returns Optuna's study."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({skill: 1.0 for skill in SKILLS})
    weights = lambda trial: {skill: trial.suggest_float(skill, 0, 2) for skill in SKILLS}
    study.optimize(lambda trial: accuracy(weights(trial), "validation"), n_trials=trials)
    return study


if __name__ == "__main__":
    found = search(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
    print("weights", {skill: round(weight, 3) for skill, weight in found.best_params.items()})
    print(f"validation {found.best_value:.4f}, test {accuracy(found.best_params, 'test'):.4f}")
