//! temporary
macro_rules! checks {
    ($($name:ident = $id:literal, $severity:ident, $title:literal, $why:literal, $remedy:literal;)*) => {
        $(static $name: $crate::audit::CheckInfo = $crate::audit::CheckInfo {
            id: $id,
            severity: $crate::audit::Severity::$severity,
            title: $title,
            why: $why,
            remedy: $remedy,
        };)*
        /// All of them.
        pub(in crate::audit) static CHECKS: &[&$crate::audit::CheckInfo] = &[$(&$name),*];
    };
}
pub(super) mod values;
