"""Train your own ChatGPT on the Hugging Face stack.

The public names are looked up on first use, so that importing the package costs next to nothing. The Auto classes know
the model as soon as this package is imported: `AutoModelForCausalLM.from_pretrained(folder)` needs no remote code.
"""

import importlib
import logging
import sys
from importlib.abc import MetaPathFinder
from typing import Any

_LAZY = {
    "NanochatHFConfig": "nanochat_hf.model.configuration_nanochat_hf",
    "NanochatHFModel": "nanochat_hf.model.modeling_nanochat_hf",
    "NanochatHFForCausalLM": "nanochat_hf.model.modeling_nanochat_hf",
}
__all__ = [*_LAZY]

# transformers, TRL and peft import torchao, which makes torch warn of what only torchao can change.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "register_constant" not in record.getMessage())


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .model.configuration_nanochat_hf import NanochatHFConfig

    AutoConfig.register(NanochatHFConfig.model_type, NanochatHFConfig, exist_ok=True)


def _register_models() -> None:
    module = sys.modules.get(_LAZY["NanochatHFModel"])
    if module is not None and not hasattr(module, "NanochatHFForCausalLM"):
        return  # our module is being imported and has itself imported transformers' mapping: its own turn comes
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

    from .model.configuration_nanochat_hf import NanochatHFConfig
    from .model.modeling_nanochat_hf import NanochatHFForCausalLM, NanochatHFModel

    AutoModel.register(NanochatHFConfig, NanochatHFModel, exist_ok=True)
    AutoModelForCausalLM.register(NanochatHFConfig, NanochatHFForCausalLM, exist_ok=True)


_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    _LAZY["NanochatHFModel"]: _register_models,
}


class _RegisterOnImport(MetaPathFinder):
    """Registers the model with the Auto classes at the moment their modules are imported, and not before: importing
    them here would cost several seconds, which a program that only wants a tokenizer or a schedule need not pay."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        register = _REGISTRATIONS.get(name)
        if register is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                break
        else:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: Any) -> None:
            execute(module)
            register()

        spec.loader.exec_module = execute_and_register
        return spec


for _module, _register in _REGISTRATIONS.items():
    if _module in sys.modules:
        _register()
sys.meta_path.insert(0, _RegisterOnImport())
