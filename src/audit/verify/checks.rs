//! The kinds of findings of `weld verify`.

checks! {
    MISSING = "verify.missing-tensor", Error,
        "A tensor that the recipe makes is not in the checkpoint",
        "Whoever loads it gets fresh random values in its place, or an error.",
        "run the recipe again";
    UNACCOUNTED = "verify.unaccounted-tensor", Error,
        "A tensor is neither made nor copied by the recipe",
        "Every tensor of a merge has its origin in the recipe; this one came from elsewhere.",
        "find out what added it, or run the recipe again";
    DTYPE = "verify.dtype", Error,
        "A tensor has another dtype than the recipe gives it",
        "Its values were rounded another time, or to another precision, than the recipe says.",
        "run the recipe again, or name the dtype in `dtype`";
    SHAPE = "verify.shape", Error,
        "A tensor has another shape than the recipe gives it",
        "It is not the result of this recipe and these inputs.",
        "check that the recipe and the inputs are those of the merge";
    DIFFERS = "verify.differs", Error,
        "A tensor is not what the recipe makes of the inputs",
        "Recomputed from the recipe and the inputs it comes out with other values.",
        "run the recipe again; if it comes out the same, another recipe or other inputs made the checkpoint";
    COPY = "verify.copy-of-input", Error,
        "A tensor is a plain copy of an input, where the recipe merges",
        "A copy passed off as a merge, or a merge that skipped this tensor.",
        "run the recipe again";
    SWAPPED = "verify.swapped", Error,
        "Two models have each other's weight",
        "The weights that explain the values best are the recipe's with two models exchanged.",
        "check the order of the models in the recipe that was run";
    NOT_APPLIED = "verify.not-applied", Error,
        "A model that the recipe merges has no part in a tensor",
        "The weight that explains the values best is zero for this model.",
        "check that the model was given its weight, and that its file is the one that was meant";
    SCALED = "verify.scaled", Error,
        "The task vectors were applied with another scale",
        "The weights that explain the values best are the recipe's times one factor.",
        "check `weight`, `lambda` and `normalize` in the recipe that was run";
    WEIGHTS = "verify.other-weights", Error,
        "A tensor was merged with other weights",
        "The values are explained by a sum of the same models with other weights.",
        "check the weights in the recipe that was run";
    TAMPERED = "verify.tampered", Error,
        "Some elements of a tensor are not what the recipe makes, and all others are",
        "A merge does not leave single elements wrong: they were changed afterwards, or a disk or a copy damaged them.",
        "run the recipe again, or copy the checkpoint again from where it was right";
    PRECISION = "verify.other-precision", Error,
        "A tensor went through a narrower dtype",
        "The values are those of the recipe, rounded to a dtype with fewer bits on the way.",
        "run the recipe again with the dtype that is meant";
    ROUNDING = "verify.rounding", Error,
        "A tensor differs from the recipe's result by single roundings",
        "No value is further from the recomputed one than the dtype's next: another tool or another order of arithmetic \
         made it. That is weaker evidence than equality.",
        "accept it with --allow step, or merge with weld for equal bytes";
    PEER = "verify.peer-numerics", Note,
        "Tensors are exact in mergekit's arithmetic, and not in weldment's",
        "Recomputed operation by operation as mergekit does it, every value comes out as it is there. What mergekit \
         leaves open (which of equal magnitudes stay, the last digits of a norm) was taken from the checkpoint, within \
         what mergekit can have done.",
        "nothing is to be done; merge with weld for bytes that rest on recipe and inputs alone";
    REFUSED = "verify.no-result", Error,
        "The recipe has no result for these inputs",
        "Recomputing it stopped at values that a merge refuses.",
        "repair the inputs, or pass the option that the merge was run with";
    CONFIG = "verify.config", Error,
        "config.json is not what the recipe writes",
        "The model is loaded as its config says, so a changed field changes the model.",
        "put the field back, or run the recipe again";
    FILE = "verify.file", Error,
        "A file beside the weights is not what the recipe writes",
        "Tokenizer and generation settings are part of the model.",
        "copy the file again from the model that gives it, or run the recipe again";
    FOREIGN = "verify.foreign-file", Error,
        "A file that loaders read is not of the merge",
        "It was added afterwards: loaders may take it for the weights, put it on them, run it, or go by it.",
        "remove it; or leave it out with --ignore, if you know what it is";
    METADATA = "verify.metadata", Error,
        "A header or the index says something that the merge did not write",
        "Loaders go by some of it, such as the format, and people by the rest.",
        "run the recipe again, or copy the checkpoint again from where it was right";
    CHANGED = "verify.changed-meanwhile", Error,
        "The checkpoint changed while it was verified",
        "The verdict would not hold for what is there now.",
        "verify it again when nothing writes to it";
    INPUT_CHANGED = "verify.input-changed", Error,
        "An input is not what it was when the checkpoint was made",
        "The lock records every input, and this one has changed since.",
        "get the input at the revision of the lock, or run the recipe again";
    INPUT_COMMIT = "verify.input-commit", Warning,
        "An input is at another commit of its repository than the lock names",
        "It was updated since, or another revision is in the cache; where its weights differ, more is found.",
        "download the commit that the lock names, or name it in --inputs";
    INPUT_SHA256 = "verify.input-sha256", Error,
        "The Hub's cache claims another SHA-256 for a file of an input than the lock does",
        "The repository published other bytes by this name than those that were merged.",
        "download the commit that the lock names, or run the recipe again";
    INPUT_ETAG = "verify.input-etag", Warning,
        "A file of an input was put into its object store again",
        "The store names another state of it than the lock does; where its weights differ, more is found.",
        "verify with --full, which reads all of its values; then the warning can be left as it is";
    INPUT_BESIDE = "verify.input-beside", Note,
        "An input was found beside the checkpoint",
        "Whoever gives a checkpoint can give the inputs with it, and make both fit: that it has the right name is all \
         that is known of this one.",
        "get the input from where it was published, and say where it is with --inputs";
    OWN_INPUT = "verify.own-input", Error,
        "The checkpoint is its own input",
        "A copy of itself is always right, so nothing was verified.",
        "say with --inputs where the model is that the recipe means";
    LOCK_RECIPE = "verify.lock-recipe", Error,
        "The lock names another recipe",
        "The recipe that was given is not the one that the lock says the checkpoint was made by.",
        "verify with the recipe of the lock by leaving --recipe out";
    LOCK_OUTPUT = "verify.lock-output", Error,
        "A tensor or a file is not what was written",
        "Its digest differs from the one that was taken when the checkpoint was made: it was changed afterwards.",
        "copy the checkpoint again from where it was right, or run the recipe again";
    LOCK_INCOMPLETE = "verify.lock-incomplete", Error,
        "The lock is not complete",
        "weld writes an entry for every tensor, file and input; what has none could have been changed unseen.",
        "get the lock again from where the checkpoint is from, or run the recipe again";
    UPDATE_KEPT = "verify.update-kept", Error,
        "The lock states another share of the update than survives",
        "How much of the update of the base survives the rounding comes out otherwise when it is measured again: the \
         number was changed afterwards.",
        "get the lock again from where the checkpoint is from, or run the recipe again";
    QUANTIZATION_ERROR = "verify.quantization-error", Error,
        "The lock states another error of the encoded weights than there is",
        "How far codes and scales are from the computed weights comes out otherwise when it is measured again: the number \
         was changed afterwards.",
        "get the lock again from where the checkpoint is from, or run the recipe again";
    NUMERICS = "verify.numerics", Warning,
        "The checkpoint was made with another version of the arithmetic, and is not equal",
        "Single roundings may differ between versions, so that equality can no longer be asked for.",
        "verify with the version of weld that the lock names, or accept single roundings with --allow step";
    NO_LOCK = "verify.lock", Note,
        "The checkpoint has no lock",
        "Without weldment.lock.json nothing says which inputs and options it was made with; they are taken from the \
         command line.",
        "merge with weld, which writes a lock";
    REPLAY = "verify.replay", Error,
        "The checkpoint could not be recomputed",
        "An input or the recipe is not there, so nothing can be said about the values.",
        "name the inputs with --inputs, or the folder that they are in";
}

/// The checks that need the lock alone.
pub(super) static OF_LOCK: &[&crate::CheckInfo] = &[
    &LOCK_OUTPUT,
    &LOCK_INCOMPLETE,
    &FOREIGN,
    &METADATA,
    &CHANGED,
    &NO_LOCK,
];
