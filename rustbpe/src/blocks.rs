//! Where pieces begin within 64 bytes of ASCII: arithmetic on bit masks, one bit a byte, no branch that depends on the
//! text. A branch the processor guesses wrong costs as much as ten bytes, and no one guesses where a word ends.

use crate::splitter::Rules;

pub const BLOCK: usize = 64;

/// Bit i of a mask tells of byte i.
struct Masks {
    letters: u64,
    numbers: u64,
    space: u64,    // ' '
    blanks: u64,   // tab, vertical tab, form feed
    newlines: u64, // CR and LF
    quotes: u64,   // the apostrophe
    wide: u64,     // not ASCII
}

/// Bit i is set where a piece begins at byte i of `block`, of which `length` bytes are text. Byte 0 must begin a piece
/// (its bit is left out). A bit is only set where the bytes before and the one behind leave no doubt; the caller goes
/// on from the last bit, and takes a piece by the table where there is none.
#[inline(always)]
pub fn beginnings(rules: &Rules, block: &[u8; BLOCK], length: usize) -> u64 {
    let Masks { letters, numbers, space, blanks, newlines, quotes, wide } = masks(block);
    let (blanks, newlines) = if rules.newlines { (space | blanks, newlines) } else { (space | blanks | newlines, 0) };
    let others = !(letters | numbers | blanks | newlines);

    let other = others & !((others | space) << 1); // a space goes with the punctuation behind it
    let newline = newlines & !((others | blanks | newlines) << 1);
    let blank = blanks & !((blanks << 1) & (blanks >> 1)); // the first of a run, and the last, which may go with a word
    let taken = if rules.any_prefix { blanks | other } else { space }; // what goes with the word behind it
    let letter = letters & !((letters | taken) << 1);
    let number = match rules.digits {
        0 => numbers & !((numbers | space) << 1),
        digits => groups(numbers, digits),
    };
    let mut begins = other | newline | blank | letter | number;

    // Where the text goes on unseen, and where white space ends in a line break: what belongs together there is for the
    // table to find out.
    let mut doubt = wide | blanks & (newlines >> 1) | if length < BLOCK { u64::MAX << length } else { 0 };
    if rules.newlines {
        let soft = if rules.whole_end { blanks | newlines } else { blanks };
        let solid = !soft & below(doubt);
        doubt |= 2u64.checked_shl(64 - solid.leading_zeros()).unwrap_or(0); // nothing is sure behind the last of these
    }
    let mut sure = below(doubt) >> 1; // the last byte without doubt may still end a run of blanks, or not
    let mut apostrophes = quotes & other & (letters >> 1) & sure;
    while apostrophes != 0 {
        let at = apostrophes.trailing_zeros() as usize;
        if at + 3 >= BLOCK {
            sure &= u64::MAX >> (BLOCK - 1 - at);
        } else if let Some(end) = rules.contraction_end(block, at + 1) {
            begins = begins & !(1 << (at + 1)) | 1 << end;
        }
        apostrophes &= apostrophes - 1;
    }
    begins & sure & !1
}

/// All bits below the lowest that is set.
fn below(mask: u64) -> u64 {
    mask.wrapping_sub(1) & !mask
}

/// The first of every `size` numbers in a run.
#[inline(always)]
fn groups(numbers: u64, size: usize) -> u64 {
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
fn masks(block: &[u8; BLOCK]) -> Masks {
    use std::arch::x86_64::*;
    let mut all = [0u64; 7];
    // SSE2 is part of every x86-64, so these are always there; the loads stay inside of the block.
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
            let found = [
                from(_mm_or_si128(bytes, set(0x20)), b'a', 26),
                from(bytes, b'0', 10),
                is(b' '),
                _mm_andnot_si128(newlines, from(bytes, b'\t', 5)),
                newlines,
                is(b'\''),
                bytes,
            ];
            for (mask, found) in all.iter_mut().zip(found) {
                *mask |= (_mm_movemask_epi8(found) as u64) << (16 * quarter);
            }
        }
    }
    let [letters, numbers, space, blanks, newlines, quotes, wide] = all;
    Masks { letters, numbers, space, blanks, newlines, quotes, wide }
}

#[cfg(not(target_arch = "x86_64"))]
use portable_masks as masks;

/// Eight bytes at a time in a machine word; the top bit of each byte says whether the byte is of a class.
#[cfg(any(test, not(target_arch = "x86_64")))]
fn portable_masks(block: &[u8; BLOCK]) -> Masks {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let mut all = [0u64; 7];
    for (index, eight) in block.chunks_exact(8).enumerate() {
        let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let ascii = word & (0x7f * EACH);
        let from = |word: u64, first: u8, count: u8| {
            (word + (0x80 - first) as u64 * EACH) & !(word + (0x80 - first - count) as u64 * EACH)
        };
        let is = |byte| from(ascii, byte, 1);
        let newlines = is(b'\n') | is(b'\r');
        let found = [
            from(ascii | 0x20 * EACH, b'a', 26) & !word,
            from(ascii, b'0', 10) & !word,
            is(b' ') & !word,
            from(ascii, b'\t', 5) & !newlines & !word,
            newlines & !word,
            is(b'\'') & !word,
            word,
        ];
        for (mask, found) in all.iter_mut().zip(found) {
            let top_bits = (found >> 7) & EACH;
            *mask |= (top_bits.wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * index);
        }
    }
    let [letters, numbers, space, blanks, newlines, quotes, wide] = all;
    Masks { letters, numbers, space, blanks, newlines, quotes, wide }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_masks_are_the_same() {
        let fields = |masks: Masks| {
            let Masks { letters, numbers, space, blanks, newlines, quotes, wide } = masks;
            [letters, numbers, space, blanks, newlines, quotes, wide]
        };
        for shift in 0..=255u8 {
            let block = std::array::from_fn(|index| (index as u8).wrapping_mul(37).wrapping_add(shift));
            assert_eq!(fields(masks(&block)), fields(portable_masks(&block)));
        }
    }
}
