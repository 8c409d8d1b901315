//! Memory for the engine's buffers. Where the system has none left, that is an error, and the process goes on.

use super::EngineError;

/// Makes `values` `length` long. New elements are `value`.
pub(super) fn resize<T: Clone>(
    values: &mut Vec<T>,
    length: usize,
    value: T,
) -> Result<(), EngineError> {
    let more = length.saturating_sub(values.len());
    let reserved = values.try_reserve(more);
    reserved.map_err(|_| EngineError::Memory {
        bytes: length.saturating_mul(size_of::<T>()),
    })?;
    values.resize(length, value);
    Ok(())
}

/// `length` times `value`.
pub(super) fn filled<T: Clone>(length: usize, value: T) -> Result<Vec<T>, EngineError> {
    let mut values = Vec::new();
    resize(&mut values, length, value)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_can_be_is_an_error_and_leaves_the_buffer_as_it_was() {
        let mut values = vec![1u64, 2];
        let error = resize(&mut values, usize::MAX / 16, 0).unwrap_err();
        assert!(matches!(error, EngineError::Memory { bytes } if bytes > 1 << 60));
        assert_eq!(values, [1, 2]);
        resize(&mut values, 3, 7).unwrap();
        assert_eq!(values, [1, 2, 7]);
        assert_eq!(filled(2, 0.5).unwrap(), [0.5, 0.5]);
    }
}
