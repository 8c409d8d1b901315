//! The names that pickles of weights and of trainers' files import: calling them runs no other code.
//!
//! These are the names that `torch.save` writes for tensors and for the states of optimizers, schedulers and random
//! generators; `training_args.bin` of transformers, with what accelerate and TRL add to it; and numpy arrays. Only a
//! whole name is harmless: `torch` and `os.system` are two parts of one that is not listed. Names that look up or
//! unpickle other things (`getattr`, `torch.storage._load_from_bytes`, `functools.partial`) are left out.

use super::torch;

/// Names by module.
const NAMES: [(&[&str], &[&str]); 24] = [
    (
        &["collections"],
        &["OrderedDict", "defaultdict", "Counter", "deque"],
    ),
    (
        &["builtins", "__builtin__"],
        &[
            "set",
            "frozenset",
            "bytearray",
            "bytes",
            "complex",
            "slice",
            "range",
            "list",
            "dict",
            "tuple",
            "int",
            "float",
            "bool",
            "object",
        ],
    ),
    (&["copyreg", "copy_reg"], &["_reconstructor"]),
    (&["_codecs"], &["encode"]),
    (&["argparse"], &["Namespace"]),
    (&["datetime"], &["datetime", "timedelta"]),
    (&["pathlib"], &["PosixPath", "PurePosixPath", "WindowsPath"]),
    (&["numpy"], &["ndarray", "dtype"]),
    (
        &["numpy.core.multiarray", "numpy._core.multiarray"],
        &["_reconstruct", "scalar"],
    ),
    (
        &["torch._utils"],
        &[
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
            "_rebuild_sparse_tensor",
            "_rebuild_sparse_csr_tensor",
            "_rebuild_nested_tensor",
            "_rebuild_qtensor",
            "_rebuild_meta_tensor_no_storage",
            "_rebuild_device_tensor_from_numpy",
            "_rebuild_device_tensor_from_cpu_tensor",
        ],
    ),
    (
        &["torch"],
        &[
            "Tensor",
            "quint8",
            "qint8",
            "qint32",
            "quint4x2",
            "per_tensor_affine",
            "per_channel_affine",
            "complex32",
            "complex64",
            "complex128",
            "ComplexFloatStorage",
            "ComplexDoubleStorage",
            "QInt8Storage",
            "QUInt8Storage",
            "QInt32Storage",
        ],
    ),
    (&["torch._tensor"], &["_rebuild_from_type_v2"]),
    (&["torch.nn", "torch.nn.parameter"], &["Parameter"]),
    (&["torch.serialization"], &["_get_layout"]),
    (&["transformers.training_args"], &["TrainingArguments"]),
    (
        &["transformers.training_args_seq2seq"],
        &["Seq2SeqTrainingArguments"],
    ),
    (&["transformers.trainer_pt_utils"], &["AcceleratorConfig"]),
    (
        &[
            "transformers.integrations.deepspeed",
            "transformers.deepspeed",
        ],
        &["HfTrainerDeepSpeedConfig", "HfDeepSpeedConfig"],
    ),
    (&["accelerate.state"], &["PartialState"]),
    (
        &["accelerate.utils.dataclasses"],
        &["DeepSpeedPlugin", "FullyShardedDataParallelPlugin"],
    ),
    (
        &[
            "sentence_transformers.training_args",
            "sentence_transformers.sentence_transformer.training_args",
        ],
        &["SentenceTransformerTrainingArguments"],
    ),
    (&["deepspeed.utils.tensor_fragment"], &["fragment_address"]),
    (
        &["deepspeed.runtime.fp16.loss_scaler"],
        &["LossScaler", "DynamicLossScaler"],
    ),
    (
        &["trl.trainer.model_config", "trl.trainer.training_configs"],
        &["ModelConfig"],
    ),
];

/// The configs of TRL's trainers, such as `trl.trainer.sft_config.SFTConfig`: module and class share a stem.
const TRL_CONFIGS: [&str; 17] = [
    "SFT",
    "DPO",
    "PPO",
    "PPOv2",
    "RLOO",
    "ORPO",
    "KTO",
    "CPO",
    "BCO",
    "GRPO",
    "GKD",
    "XPO",
    "NashMD",
    "OnlineDPO",
    "Reward",
    "PRM",
    "Alignprop",
];

/// Enums; Python 3.11 pickles a member as a call of `getattr` with the enum and the member's name.
const ENUMS: [(&str, &[&str]); 9] = [
    (
        "transformers.trainer_utils",
        &[
            "IntervalStrategy",
            "EvaluationStrategy",
            "SaveStrategy",
            "HubStrategy",
            "SchedulerType",
            "FSDPOption",
            "ShardedDDPOption",
            "HPSearchBackend",
        ],
    ),
    (
        "transformers.training_args",
        &["OptimizerNames", "ParallelMode"],
    ),
    ("transformers.debug_utils", &["DebugOption"]),
    ("transformers.utils.generic", &["PaddingStrategy"]),
    (
        "accelerate.utils.dataclasses",
        &[
            "DistributedType",
            "DynamoBackend",
            "PrecisionType",
            "ComputeEnvironment",
            "SageMakerDistributedType",
            "FP8BackendType",
        ],
    ),
    (
        "torch.distributed.fsdp.api",
        &["ShardingStrategy", "BackwardPrefetch", "StateDictType"],
    ),
    ("deepspeed.runtime.zero.config", &["ZeroStageEnum"]),
    (
        "sentence_transformers.training_args",
        &["BatchSamplers", "MultiDatasetBatchSamplers"],
    ),
    (
        "trl.trainer.dpo_config",
        &["FDivergenceType", "FDivergenceConstants"],
    ),
];

/// Whether an imported name is harmless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Import {
    Harmless,
    /// Harmless; `getattr` may look up a member of it.
    Enum,
    /// Harmless if it looks up a member of an enum, and nowhere else.
    Getattr,
    /// Not known to be harmless.
    Other,
}

/// Looks a whole name up.
pub(super) fn import(module: &str, name: &str) -> Import {
    let is = |enums: &(&str, &[&str])| enums.0 == module && enums.1.contains(&name);
    let builtin = ["builtins", "__builtin__"].contains(&module);
    if builtin && name == "getattr" {
        Import::Getattr
    } else if ENUMS.iter().any(is) {
        Import::Enum
    } else if torch::global(module, name).is_ok()
        || NAMES
            .iter()
            .any(|(modules, names)| modules.contains(&module) && names.contains(&name))
        || is_dtype_class(module, name)
        || is_trl_config(module, name)
    {
        Import::Harmless
    } else {
        Import::Other
    }
}

/// `numpy.dtypes.UInt32DType` and its like.
fn is_dtype_class(module: &str, name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    module == "numpy.dtypes" && plain && name.ends_with("DType")
}

fn is_trl_config(module: &str, name: &str) -> bool {
    let middle = module
        .strip_prefix("trl.trainer.")
        .and_then(|rest| rest.strip_suffix("_config"));
    let (Some(middle), Some(stem)) = (middle, name.strip_suffix("Config")) else {
        return false;
    };
    let joined = middle.replace('_', "");
    TRL_CONFIGS.contains(&stem) && joined.eq_ignore_ascii_case(stem)
}
