"""Synonyms of settings that are familiar from other libraries, for flags, FASTMLP_* variables and TOML keys."""

from __future__ import annotations

from collections.abc import Collection

# Maps each setting to its synonyms, which are accepted but not shown in --help.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "data": ("dataset",),
    "data_dir": ("data_folder", "data_path"),
    "val_fraction": ("val_split", "validation_split", "validation_fraction", "val_size"),
    "test_fraction": ("test_split", "test_size"),
    "scale": ("scaling", "scaler"),
    "seed": ("random_state", "random_seed"),
    "hidden": ("hidden_layers", "hidden_layer_sizes", "hidden_sizes", "hidden_units"),
    "activation": ("activations", "act"),
    "dropout": ("dropout_rate", "drop_rate"),
    "loss": ("loss_fn", "criterion"),
    "init": ("initializer", "weight_init"),
    "optimizer": ("optim", "optimiser", "solver"),
    "lr": ("learning_rate", "learning_rate_init"),
    "epsilon": ("eps",),
    "weight_decay": ("wd",),
    "max_grad_norm": ("clip_grad_norm", "grad_clip", "gradient_clip_val"),
    "schedule": ("scheduler", "lr_scheduler", "lr_schedule"),
    "lr_step": ("step_size",),
    "lr_gamma": ("gamma",),
    "lr_warmup": ("warmup_epochs",),
    "batch_size": ("batch",),
    "epochs": ("n_epochs", "num_epochs", "max_epochs"),
    "patience": ("early_stopping", "early_stopping_patience", "n_iter_no_change"),
    "min_delta": ("tol",),
    "restore_best": ("restore_best_weights",),
    "max_time": ("time_limit",),
    "backend": ("device", "engine"),
    "threads": ("num_threads", "n_threads"),
    "out": ("output_dir", "out_dir", "output_folder"),
    "force": ("overwrite",),
    "filters": ("channels",),
    "kernel": ("kernel_size",),
    "pool_kernel": ("pool_size",),
}
NOT_IN_VARIABLES = ("device",)  # FASTMLP_DEVICE sets `device` of `extract`; all commands share variables


def setting_synonyms(settings: Collection[str]) -> dict[str, str]:
    """Return a dict from synonym to setting for a command; the name of one of the command's own settings is not a synonym.

    >>> setting_synonyms(["lr", "seed"])["learning_rate"], setting_synonyms(["backend", "device"])
    ('lr', {'engine': 'backend'})
    """
    return {other: name for name in settings for other in SYNONYMS.get(name, ()) if other not in settings}
