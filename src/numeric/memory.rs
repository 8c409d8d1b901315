//! Memory for buffers whose size the input decides. Where the system has none left, that is an error, and the process
//! goes on.

/// The system has no memory for a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not enough memory: the system refused {bytes} bytes")]
pub struct NoMemory {
    /// Bytes of the buffer.
    pub bytes: usize,
}

/// Makes `values` `length` long. New elements are `value`.
///
/// # Errors
/// If there is no memory; `values` stay as they were.
pub fn resize<T: Clone>(values: &mut Vec<T>, length: usize, value: T) -> Result<(), NoMemory> {
    reserve(values, length)?;
    values.resize(length, value);
    Ok(())
}

/// Makes `values` `length` long. New elements are made by `value`.
pub(super) fn resize_with<T>(
    values: &mut Vec<T>,
    length: usize,
    value: impl FnMut() -> T,
) -> Result<(), NoMemory> {
    reserve(values, length)?;
    values.resize_with(length, value);
    Ok(())
}

/// Makes room in `values` for `length` elements.
///
/// # Errors
/// If there is no memory.
pub fn reserve<T>(values: &mut Vec<T>, length: usize) -> Result<(), NoMemory> {
    let more = length.saturating_sub(values.len());
    let reserved = values.try_reserve(more);
    reserved.map_err(|_| NoMemory {
        bytes: length.saturating_mul(size_of::<T>()),
    })
}

/// `length` times `value`.
///
/// # Errors
/// If there is no memory.
pub fn filled<T: Clone>(length: usize, value: T) -> Result<Vec<T>, NoMemory> {
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
        assert!(error.bytes > 1 << 60);
        assert_eq!(values, [1, 2]);
        resize(&mut values, 3, 7).unwrap();
        assert_eq!(values, [1, 2, 7]);
        assert_eq!(filled(2, 0.5).unwrap(), [0.5, 0.5]);
    }
}
