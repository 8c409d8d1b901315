//! The kinds of findings about signatures and attestations.

checks! {
    MISSING = "signature.missing", Error,
        "There is no signature",
        "Nothing says who published the checkpoint.",
        "sign it with `weld sign`, or name the signature with --signature";
    UNREADABLE = "signature.unreadable", Error,
        "The signature cannot be checked",
        "It is not a bundle of OpenSSF Model Signing 1.0 that was made with a local key, so it proves nothing.",
        "get the signature again from who made it, or check certificates with the model-signing package";
    OTHER_KEY = "signature.other-key", Error,
        "The signature was made with another key",
        "It names a key that is not the one that was given.",
        "find out whose key it is, and give the public key of whom you trust";
    INVALID = "signature.invalid", Error,
        "The signature does not hold",
        "The key has not signed this list of files: the signature or the list was changed afterwards.",
        "get the signature again from who made it";
    CHANGED = "signature.changed-file", Error,
        "A file is not what was signed",
        "Its bytes are not those that the signer had.",
        "get the file again from where the signature is from";
    ABSENT = "signature.missing-file", Error,
        "A file that was signed is not there",
        "The checkpoint is not whole.",
        "get the file again from where the signature is from";
    ADDED = "signature.added-file", Error,
        "A file was not signed",
        "It was added afterwards, and loaders may read it, or run it.",
        "remove it, or sign again";
    LINK = "signature.link", Error,
        "A link is where a file was signed",
        "The signature says that no links were followed, and what a link leads to can be exchanged.",
        "put the file itself there; the Hub's cache is made of links, `hf download --local-dir` writes files";
    OUTSIDE = "signature.link-outside", Warning,
        "A link leads out of the folder",
        "What it leads to is what was signed, but lies where others may change it.",
        "put the file itself there";
    LEFT_OUT = "signature.left-out", Warning,
        "What the signer left out is there",
        "The signature excludes this path by name, so anybody may put anything there.",
        "remove it, or sign again without leaving it out";
    NO_ATTESTATION = "attestation.missing", Error,
        "There is no attestation",
        "Nothing that is signed says what the checkpoint was made from.",
        "write one with `weld attest --key`, or name it with --attestation";
    ATTESTATION = "attestation.unreadable", Error,
        "The attestation cannot be believed",
        "It is not an attestation of a merge that the given key has signed, so it proves nothing.",
        "get the attestation again from who made it, or write one with `weld attest --key`";
    ATTESTED = "attestation.file", Error,
        "A file is not what was attested",
        "It is another than the one that was recomputed, or was not there then.",
        "get the files again from where the attestation is from, or attest again";
    INPUT = "provenance.input", Error,
        "An input is not among those that the policy allows",
        "The project says in `allow_inputs` what its models may be made from.",
        "merge allowed models, or add this one to `allow_inputs`";
}
