"""The settings of all evaluations. Nothing here imports torch, so `--help` and mistakes are said at once."""

from dataclasses import dataclass, field

from nanochat_hf.settings import MODEL_FOLDERS

MICROWORLD = "microworld"


@dataclass
class EvaluationConfig:
    """One set of settings for all evaluation scripts; each script reads those that concern it."""

    checkpoints: list[str] = field(
        default_factory=list, metadata={"help": "checkpoint folders or Hub ids; results go into eval/ of each folder"}
    )
    run_dir: str | None = field(default=None, metadata={"help": "run folder; its finished stages are evaluated"})
    stages: list[str] = field(
        default_factory=lambda: list(MODEL_FOLDERS), metadata={"help": "stages of --run_dir to evaluate"}
    )
    evaluations: list[str] = field(
        default_factory=lambda: ["bits_per_byte", "core", "chat"], metadata={"help": "evaluations to run"}
    )
    output_dir: str | None = field(
        default=None,
        metadata={
            "help": "folder for results, with one subfolder per checkpoint if there are several; default: eval/"
        },
    )
    redo: bool = field(default=False, metadata={"help": "evaluate again even where results with these settings exist"})

    data: str = field(
        default=MICROWORLD, metadata={"help": "bits per byte: source whose validation documents are scored"}
    )
    max_documents: int = field(default=500, metadata={"help": "bits per byte: number of documents; -1 for all"})

    core_bundle: str = field(
        default=MICROWORLD, metadata={"help": "folder of the CORE bundle; default: the built-in completion tasks"}
    )
    core_tasks: list[str] | None = field(default=None, metadata={"help": "labels of the bundle's tasks; default: all"})
    core_stages: list[str] = field(
        default_factory=lambda: list(MODEL_FOLDERS), metadata={"help": "stages of --run_dir that CORE is run on"}
    )
    max_per_task: int = field(default=-1, metadata={"help": "CORE: items per task; -1 for all"})

    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "chat tasks: name[/split][=path][@[~]max_examples], such as gsm8k=DIR@200; ~: at random"},
    )
    chat_stages: list[str] = field(
        default_factory=lambda: list(MODEL_FOLDERS),
        metadata={"help": "stages of --run_dir that the chat tasks are run on"},
    )
    split: str = field(default="test", metadata={"help": "split of the chat tasks"})
    max_problems: int | None = field(default=None, metadata={"help": "chat tasks: first items per task; default: all"})
    num_samples: int = field(default=1, metadata={"help": "answers per problem; above 1, pass@k is reported as well"})
    temperature: float = field(default=0.0, metadata={"help": "sampling temperature; 0 is greedy"})
    top_k: int | None = field(default=50, metadata={"help": "sample from the k most likely tokens; 0: from all"})
    max_new_tokens: int = field(default=512, metadata={"help": "longest answer in tokens"})
    allow_code_execution: bool = field(
        default=False, metadata={"help": "run programs that the model wrote (HumanEval), inside the sandbox"}
    )

    stranger_samples: int = field(default=3, metadata={"help": "stranger's list: conversations per item"})
    stranger_sampling: list[str] = field(
        default_factory=list,
        metadata={"help": "stranger's list: other sampling than the checkpoint's own, such as temperature=0.3"},
    )
    stranger_stages: list[str] = field(
        default_factory=lambda: [name for name in MODEL_FOLDERS if name != "base"],
        metadata={"help": "stages of --run_dir that the stranger's list is run on"},
    )

    max_tokens: int = field(default=16384, metadata={"help": "padded tokens per forward pass"})
    max_length: int | None = field(
        default=None, metadata={"help": "longest input in tokens; default: the model's context"}
    )
    batch_size: int = field(default=32, metadata={"help": "answers generated at the same time"})
    dtype: str = field(
        default="auto",
        metadata={"help": "auto, float32 or bfloat16; auto: bfloat16 on CUDA, else as the checkpoint"},
    )
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps"})
    revision: str | None = field(default=None, metadata={"help": "commit or tag of a Hub model"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "run the Python code in a Hub model's repository"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the sampling"})
