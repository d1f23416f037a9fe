"""Train your own ChatGPT on the Hugging Face stack.

After `import nanochat_hf`, transformers' Auto classes know the model: `AutoModelForCausalLM.from_pretrained(folder)`
needs no remote code. The public names are imported on first use.

The model is registered by a hook, when transformers' Auto modules are imported. Plain calls of `register` in this file
would import transformers and the model at once. CPU seconds of a fresh process, median of 7, transformers 5.23:

    import transformers; transformers.AutoModelForCausalLM                6.3
    the same after `import nanochat_hf`, with plain calls                12.0
    nanochat-hf --help: with the hook 0.2, with plain calls              12.1
    nanochat-hf plan 12: with the hook                                    0.2
"""

import importlib
import logging
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODELING = "nanochat_hf.model.modeling_nanochat_hf"
_MODULE_OF = {
    "NanochatHFConfig": "nanochat_hf.model.configuration_nanochat_hf",
    "NanochatHFModel": _MODELING,
    "NanochatHFForCausalLM": _MODELING,
    "NanochatHFForQuestionAnswering": _MODELING,
    "NanochatHFForSequenceClassification": _MODELING,
    "NanochatHFForTokenClassification": _MODELING,
}
__all__ = [*_MODULE_OF]

# transformers, TRL and peft import torchao, which makes torch warn of what only torchao can change.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in record.getMessage())


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .model.configuration_nanochat_hf import NanochatHFConfig

    AutoConfig.register(NanochatHFConfig.model_type, NanochatHFConfig, exist_ok=True)


def _register_models() -> None:
    module = sys.modules.get(_MODELING)
    if module is not None and not hasattr(module, "AUTO_CLASSES"):
        return  # the model's module is being imported, and imports the Auto modules itself: its own turn comes
    from transformers.models.auto import modeling_auto

    from .model.modeling_nanochat_hf import AUTO_CLASSES, NanochatHFConfig

    for name, model_class in AUTO_CLASSES.items():
        getattr(modeling_auto, name).register(NanochatHFConfig, model_class, exist_ok=True)


def _name_lora_targets() -> None:
    """A bare `LoraConfig()` adapts queries and values, as PEFT does in models that it knows."""
    constants: Any = sys.modules["peft.utils.constants"]
    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault("nanochat_hf", ["q_proj", "v_proj"])


_REGISTER_AFTER = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    _MODELING: _register_models,
    "peft.utils.constants": _name_lora_targets,
}


class _RegisterAfterImport(MetaPathFinder):
    """Calls the functions of `_REGISTER_AFTER` when their modules have been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _REGISTER_AFTER:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _REGISTER_AFTER[name]()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _RegisterAfterImport())
for _module, _register in _REGISTER_AFTER.items():
    if _module in sys.modules:
        _register()
