//! The kinds of findings of `weld diff`.

checks! {
    VALUES = "diff.values", Error,
        "The values of a tensor differ",
        "The two checkpoints compute differently.",
        "if these checkpoints are meant to differ, set limits with --policy";
    MISSING = "diff.missing-tensor", Error,
        "Only the first checkpoint has a tensor",
        "The second lacks it, or has it under another name and with other values.",
        "check which of the two is complete with `weld check`";
    ADDED = "diff.added-tensor", Error,
        "Only the second checkpoint has a tensor",
        "The first lacks it, or has it under another name and with other values.",
        "check which of the two is complete with `weld check`";
    RENAMED = "diff.renamed-tensor", Warning,
        "A tensor has another name",
        "Both checkpoints have it, byte for byte, under different names.",
        "check which name the config's architecture reads";
    SHAPE = "diff.shape", Error,
        "A tensor has another shape",
        "Its values cannot be compared.",
        "compare the configs of the two";
    DTYPE = "diff.dtype", Warning,
        "A tensor has another dtype",
        "Its values were compared after decoding; those of the narrower dtype were rounded.",
        "if the dtype is meant to differ, turn this check off with --policy";
    NON_FINITE = "diff.non-finite", Warning,
        "A tensor has values that are no numbers",
        "NaN and infinity are left out of every measure.",
        "look at the checkpoint with `weld check`";
    IS_BASE = "diff.same-as-base", Warning,
        "A checkpoint has the values of the base",
        "It was not trained, or a merge gave its base back.",
        "check that the right folder was compared";
    CONFIG = "diff.config", Error,
        "A field of a config differs",
        "A model is loaded as its config says.",
        "if the field is meant to differ, turn this check off with --policy";
    TOKENS = "diff.tokenizer", Error,
        "The tokenizers give other ids",
        "The same text becomes other tokens, or the same id stands for another token.",
        "if the vocabularies are meant to differ, turn this check off with --policy";
    FILE = "diff.file", Note,
        "A file beside the weights differs",
        "Its bytes differ, or only one checkpoint has it.",
        "compare the two files";
}
