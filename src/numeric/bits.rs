//! Flags, one bit per element: element `i` is bit `i % 64` of word `i / 64`.

use super::vector::vectorised;

/// Elements per word.
pub const WORD: usize = 64;

vectorised! {
    /// Packs bytes that are 0 or 1 into words; the bits after the last byte are zero.
    pub fn pack(values: &[u8], words: &mut [u64]) {
        let (whole, rest) = values.as_chunks::<WORD>();
        for (word, bytes) in words.iter_mut().zip(whole) {
            *word = pack_word(bytes);
        }
        if let Some(word) = words.get_mut(whole.len()) {
            let mut bytes = [0; WORD];
            bytes[..rest.len()].copy_from_slice(rest);
            *word = pack_word(&bytes);
        }
    }
}

/// Packs 64 bytes that are 0 or 1 into one word.
#[inline(always)]
fn pack_word(bytes: &[u8; WORD]) -> u64 {
    let mut word = 0;
    #[cfg(target_arch = "x86_64")]
    for (index, sixteen) in bytes.as_chunks::<16>().0.iter().enumerate() {
        use std::arch::x86_64::{_mm_movemask_epi8, _mm_set_epi64x, _mm_slli_epi16};
        let (halves, _) = sixteen.as_chunks::<8>();
        let [low, high] = [halves[0], halves[1]].map(i64::from_le_bytes);
        // `_mm_movemask_epi8` collects the top bit of each byte.
        // SAFETY: these intrinsics need SSE2, which every x86-64 processor has.
        let packed = unsafe { _mm_movemask_epi8(_mm_slli_epi16::<7>(_mm_set_epi64x(high, low))) };
        word |= u64::from(packed as u32) << (16 * index);
    }
    #[cfg(not(target_arch = "x86_64"))]
    for (index, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
        // The product moves byte `i` to bit `56 + i`; no two of them overlap.
        let packed = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        word |= packed << (8 * index);
    }
    word
}

/// Sets each number to zero where its bit is clear, and to some other number where it is set.
pub fn unpack(words: &[u64], numbers: &mut [u32]) {
    let (whole, rest) = numbers.as_chunks_mut::<WORD>();
    for (numbers, &word) in whole.iter_mut().zip(words) {
        unpack_word(word, numbers);
    }
    if let Some(&word) = words.get(whole.len()) {
        let mut last = [0; WORD];
        unpack_word(word, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Elements in half a word: as many as a `u32` has bits.
const HALF: usize = WORD / 2;
/// One `u32` for each bit of half a word.
const BITS: [u32; HALF] = {
    let mut bits = [0; HALF];
    let mut at = 0;
    while at < HALF {
        bits[at] = 1 << at;
        at += 1;
    }
    bits
};

vectorised! {
    /// The kernel for one word. With the loop over words inside, the compiler would emit scattered stores.
    fn unpack_word(word: u64, numbers: &mut [u32; WORD]) {
        // A single AND per element: the bits are not shifted into place.
        let (low, high) = numbers.split_at_mut(HALF);
        for (number, bit) in low.iter_mut().zip(&BITS) {
            *number = word as u32 & bit;
        }
        for (number, bit) in high.iter_mut().zip(&BITS) {
            *number = (word >> HALF) as u32 & bit;
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
            prop_assert!(back.iter().zip(&bits).all(|(&number, &bit)| (number != 0) == bit));
        }
    }
}
