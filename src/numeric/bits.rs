//! Yes and no for many elements, one bit each: element `i` is bit `i % 64` of word `i / 64`.

use super::vector::vectorised;

/// Elements of a word.
pub const WORD: usize = 64;

vectorised! {
    /// Sets words to bytes that are zero or one; bits beyond the last are zero.
    pub fn pack(values: &[u8], words: &mut [u64]) {
        for (word, values) in words.iter_mut().zip(values.chunks(WORD)) {
            let mut bytes = [0u8; WORD];
            bytes[..values.len()].copy_from_slice(values);
            *word = pack_word(&bytes);
        }
    }
}

/// Bytes that are zero or one, as bits.
#[inline(always)]
fn pack_word(bytes: &[u8; WORD]) -> u64 {
    let mut word = 0;
    for (index, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        // Shifts byte `i` to bit `56 + i`; no two of them meet.
        let packed = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word |= packed << (8 * index);
    }
    word
}

vectorised! {
    /// Sets numbers to the bits: ones and zeros.
    pub fn unpack(words: &[u64], numbers: &mut [u32]) {
        for (numbers, &word) in numbers.chunks_mut(WORD).zip(words) {
            for (half, numbers) in numbers.chunks_mut(WORD / 2).enumerate() {
                let bits = (word >> (WORD / 2 * half)) as u32;
                for (number, index) in numbers.iter_mut().zip(0u32..) {
                    *number = bits >> index & 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn unpacks_what_was_packed(bits in prop::collection::vec(any::<bool>(), 0..300)) {
            let bytes: Vec<u8> = bits.iter().map(|&bit| u8::from(bit)).collect();
            let mut words = vec![0; bits.len().div_ceil(WORD)];
            pack(&bytes, &mut words);
            for (index, bit) in bits.iter().enumerate() {
                prop_assert_eq!(words[index / WORD] >> (index % WORD) & 1 == 1, *bit);
            }
            let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
            prop_assert_eq!(ones as usize, bits.iter().filter(|bit| **bit).count());
            let mut back = vec![7; bits.len()];
            unpack(&words, &mut back);
            prop_assert!(back.iter().zip(&bits).all(|(&number, &bit)| number == u32::from(bit)));
        }
    }
}
