//! Finds where pieces start within 64 bytes of ASCII, with arithmetic on bit masks (one bit per byte).
//!
//! No branch depends on the text. A mispredicted branch costs as much as ten bytes of this arithmetic, and the ends of
//! words cannot be predicted.

use crate::rules::Rules;

/// Bytes per block.
pub const BLOCK: usize = 64;

/// Bit i of a mask describes byte i of the block.
struct Masks {
    letters: u64,
    numbers: u64,
    space: u64,       // ' '
    blanks: u64,      // tab, vertical tab, form feed
    newlines: u64,    // CR and LF
    apostrophes: u64, // '
    non_ascii: u64,
}

/// Returns a mask: bit i is set where a piece starts at byte i of `block`. The first `length` bytes are text.
///
/// Byte 0 must start a piece; its bit is left out. A bit is set only where the bytes before it and the byte after it
/// leave no doubt. The caller goes on from the last bit. Where no bit is set, it finds one piece with the table.
#[inline(always)]
pub fn piece_starts(rules: &Rules, block: &[u8; BLOCK], length: usize) -> u64 {
    let Masks { letters, numbers, space, blanks, newlines, apostrophes, non_ascii } = class_masks(block);
    let (blanks, newlines) = if rules.newlines { (space | blanks, newlines) } else { (space | blanks | newlines, 0) };
    let others = !(letters | numbers | blanks | newlines);

    let other = others & !((others | space) << 1); // a space belongs to the punctuation after it
    let newline = newlines & !((others | blanks | newlines) << 1);
    let blank = blanks & !((blanks << 1) & (blanks >> 1)); // the first of a run, and its last
    let prefix = if rules.any_prefix { blanks | other } else { space }; // belongs to the word after it
    let letter = letters & !((letters | prefix) << 1);
    let number = match rules.digits {
        0 => numbers & !((numbers | space) << 1),
        digits => digit_group_starts(numbers, digits),
    };
    let mut starts = other | newline | blank | letter | number;

    // Uncertain: what is not ASCII, what lies beyond the text, and white space that ends in a line break. There the
    // table has to decide.
    let mut uncertain = non_ascii | blanks & (newlines >> 1) | if length < BLOCK { u64::MAX << length } else { 0 };
    if rules.newlines {
        let white_space = if rules.whole_end { blanks | newlines } else { blanks };
        let visible = !white_space & below_lowest(uncertain);
        // Nothing is certain after the last visible byte.
        uncertain |= 2u64.checked_shl(64 - visible.leading_zeros()).unwrap_or(0);
    }
    let mut certain = below_lowest(uncertain) >> 1; // the last byte may or may not end a run of blanks
    let mut pending = apostrophes & other & (letters >> 1) & certain;
    while pending != 0 {
        // The next piece starts after the contraction, not after the apostrophe.
        let at = pending.trailing_zeros() as usize;
        if at + 3 >= BLOCK {
            certain &= u64::MAX >> (BLOCK - 1 - at);
        } else if let Some(end) = rules.contraction_end(block, at + 1) {
            starts = starts & !(1 << (at + 1)) | 1 << end;
        }
        pending &= pending - 1;
    }
    starts & certain & !1
}

/// All bits below the lowest bit that is set.
fn below_lowest(mask: u64) -> u64 {
    mask.wrapping_sub(1) & !mask
}

/// The first digit of every group of `size` digits in a run.
#[inline(always)]
fn digit_group_starts(numbers: u64, size: usize) -> u64 {
    let mut first = numbers & !(numbers << 1);
    let before = (1..size).fold(numbers, |whole, k| whole & numbers << k);
    loop {
        let next = first << size & before;
        if next & !first == 0 {
            return first;
        }
        first |= next;
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn class_masks(block: &[u8; BLOCK]) -> Masks {
    use std::arch::x86_64::*;
    let mut all = [0u64; 7];
    // Safe: SSE2 is part of every x86-64, and the loads stay inside the block.
    unsafe {
        for quarter in 0..4 {
            let bytes = _mm_loadu_si128(block.as_ptr().add(16 * quarter).cast());
            let set = |byte: u8| _mm_set1_epi8(byte as i8);
            let is = |byte| _mm_cmpeq_epi8(bytes, set(byte));
            let from = |bytes, first, count: u8| {
                let offset = _mm_sub_epi8(bytes, set(first));
                _mm_cmpeq_epi8(_mm_min_epu8(offset, set(count - 1)), offset)
            };
            let newlines = _mm_or_si128(is(b'\n'), is(b'\r'));
            let matched = [
                from(_mm_or_si128(bytes, set(0x20)), b'a', 26),
                from(bytes, b'0', 10),
                is(b' '),
                _mm_andnot_si128(newlines, from(bytes, b'\t', 5)),
                newlines,
                is(b'\''),
                bytes,
            ];
            for (mask, matched) in all.iter_mut().zip(matched) {
                *mask |= (_mm_movemask_epi8(matched) as u64) << (16 * quarter);
            }
        }
    }
    let [letters, numbers, space, blanks, newlines, apostrophes, non_ascii] = all;
    Masks { letters, numbers, space, blanks, newlines, apostrophes, non_ascii }
}

#[cfg(not(target_arch = "x86_64"))]
use portable_class_masks as class_masks;

/// Handles eight bytes per machine word. The top bit of each byte says whether the byte is in a class.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn portable_class_masks(block: &[u8; BLOCK]) -> Masks {
    const EVERY_BYTE: u64 = 0x0101_0101_0101_0101;
    let mut all = [0u64; 7];
    for (index, eight) in block.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let ascii = word & (0x7f * EVERY_BYTE);
        let from = |word: u64, first: u8, count: u8| {
            (word + (0x80 - first) as u64 * EVERY_BYTE) & !(word + (0x80 - first - count) as u64 * EVERY_BYTE)
        };
        let is = |byte| from(ascii, byte, 1);
        let newlines = is(b'\n') | is(b'\r');
        let matched = [
            from(ascii | (0x20 * EVERY_BYTE), b'a', 26) & !word,
            from(ascii, b'0', 10) & !word,
            is(b' ') & !word,
            from(ascii, b'\t', 5) & !newlines & !word,
            newlines & !word,
            is(b'\'') & !word,
            word,
        ];
        for (mask, matched) in all.iter_mut().zip(matched) {
            let top_bits = (matched >> 7) & EVERY_BYTE;
            *mask |= (top_bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * index);
        }
    }
    let [letters, numbers, space, blanks, newlines, apostrophes, non_ascii] = all;
    Masks { letters, numbers, space, blanks, newlines, apostrophes, non_ascii }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_class_masks_are_the_same() {
        let fields = |masks: Masks| {
            let Masks { letters, numbers, space, blanks, newlines, apostrophes, non_ascii } = masks;
            [letters, numbers, space, blanks, newlines, apostrophes, non_ascii]
        };
        for shift in 0..=255u8 {
            let block = std::array::from_fn(|index| (index as u8).wrapping_mul(37).wrapping_add(shift));
            assert_eq!(fields(class_masks(&block)), fields(portable_class_masks(&block)));
        }
    }
}
