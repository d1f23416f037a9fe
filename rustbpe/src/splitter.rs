//! Splits text into pieces (pre-tokenization). BPE merges tokens only inside a piece.
//!
//! The patterns of nanochat, GPT-2, GPT-4 and Qwen2 are one family, described by a few `Rules`. They have a
//! hand-written splitter: it handles ASCII in blocks of 64 bytes (`blocks.rs`), and everything else piece by piece
//! with a table of character classes. Any other pattern goes through `fancy_regex`, the engine that tiktoken uses. The
//! table is built from that engine's own Unicode data.

use std::sync::OnceLock;

use crate::blocks::{piece_starts, BLOCK};
#[cfg(target_arch = "x86_64")]
use crate::processor::is_x86_64_v3;
use crate::rules::{Rules, DEFAULT_PATTERN, KNOWN_PATTERNS};

/// One class per code point. The length is part of the type, so looking up an ASCII character needs no bounds check.
type Classes = [u8; 0x110000];

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3; // white space other than CR and LF
const NEWLINE: u8 = 4; // CR and LF

/// How a pattern is applied.
pub enum Splitter {
    Table(Rules, &'static Classes),
    Regex(Box<fancy_regex::Regex>),
}

/// `Splitter::split` calls back as soon as it has this many pieces.
const PIECES_PER_CALL: usize = 256;
/// The most pieces per call: the last block may add up to one piece per byte.
pub const MAX_PIECES: usize = PIECES_PER_CALL + BLOCK;

impl Splitter {
    /// `None` means the default pattern.
    pub fn new(pattern: Option<&str>) -> Result<Self, String> {
        let pattern = pattern.unwrap_or(DEFAULT_PATTERN);
        match KNOWN_PATTERNS.iter().find(|known| known.0 == pattern) {
            Some(&(_, rules)) => Ok(Splitter::Table(rules, classes())),
            None => Self::regex(pattern),
        }
    }

    /// Uses the regex engine, for any pattern. The tests compare the table with it.
    pub fn regex(pattern: &str) -> Result<Self, String> {
        match fancy_regex::Regex::new(pattern) {
            Ok(regex) => Ok(Splitter::Regex(Box::new(regex))),
            Err(error) => Err(format!("the split pattern does not compile: {error}")),
        }
    }

    /// Cuts a long text into chunks of at least `size` bytes, so that several threads can split it.
    ///
    /// The chunks split into the same pieces as the whole text. With the known patterns no piece goes on from a letter
    /// to another class, and the look-ahead covers only white space. So the text can be cut after the last letter of a
    /// word. About other patterns nothing is known: they get one chunk.
    pub fn chunks<'t>(&self, text: &'t str, size: usize) -> impl Iterator<Item = &'t str> {
        let classes = match self {
            Splitter::Table(_, classes) => Some(*classes),
            Splitter::Regex(_) => None,
        };
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = classes.map_or(rest.len(), |classes| safe_cut(classes, rest, size));
            let (chunk, tail) = rest.split_at(end);
            rest = tail;
            Some(chunk)
        })
    }

    /// Calls `pieces(text, start, ends)` with up to `MAX_PIECES` pieces at a time, in order, until it returns false.
    ///
    /// The first piece is `text[start..ends[0]]`. Each other piece starts where the one before it ends. With
    /// `keep_gaps`, text between matches is a piece too, as in `tokenizers`. Without it, that text is left out, as in
    /// upstream's trainer. The known patterns match everything, so `keep_gaps` makes no difference for them.
    pub fn split<'t>(
        &self,
        text: &'t str,
        keep_gaps: bool,
        mut pieces: impl FnMut(&'t [u8], usize, &[usize]) -> bool,
    ) -> Result<(), String> {
        let bytes = text.as_bytes();
        match self {
            Splitter::Table(rules, classes) => {
                #[cfg(target_arch = "x86_64")]
                if is_x86_64_v3() {
                    // SAFETY: the processor has the instructions.
                    unsafe { split_by_table_v3(rules, classes, bytes, pieces) };
                    return Ok(());
                }
                split_by_table(rules, classes, bytes, pieces);
                Ok(())
            }
            Splitter::Regex(regex) => {
                let (mut last, mut start, mut ends) = (0, 0, Vec::with_capacity(PIECES_PER_CALL));
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| format!("the split pattern failed on a text: {error}"))?;
                    let gap = found.start() > last;
                    if (gap && !keep_gaps) || ends.len() + 2 > PIECES_PER_CALL {
                        if !pieces(bytes, start, &ends) {
                            return Ok(());
                        }
                        ends.clear();
                        start = if keep_gaps { last } else { found.start() };
                    }
                    if gap && keep_gaps {
                        ends.push(found.start());
                    }
                    if found.end() > found.start() {
                        ends.push(found.end());
                    }
                    last = found.end();
                }
                if keep_gaps && last < text.len() {
                    ends.push(text.len());
                }
                pieces(bytes, start, &ends);
                Ok(())
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
unsafe fn split_by_table_v3<'t>(
    rules: &Rules,
    classes: &Classes,
    bytes: &'t [u8],
    pieces: impl FnMut(&'t [u8], usize, &[usize]) -> bool,
) {
    split_by_table(rules, classes, bytes, pieces)
}

/// `Splitter::split` for the known patterns.
#[inline(always)]
fn split_by_table<'t>(
    rules: &Rules,
    classes: &Classes,
    bytes: &'t [u8],
    mut pieces: impl FnMut(&'t [u8], usize, &[usize]) -> bool,
) {
    let (mut ends, mut found) = ([0; MAX_PIECES], 0);
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        let mut starts = match bytes.get(at..at + BLOCK) {
            // A block that starts with other characters needs the table anyway.
            Some(block) if (block[0] | block[1]) < 0x80 => {
                piece_starts(rules, block.try_into().expect("a block"), BLOCK)
            }
            Some(_) => 0,
            None => {
                let mut block = [0; BLOCK];
                block[..bytes.len() - at].copy_from_slice(&bytes[at..]);
                piece_starts(rules, &block, bytes.len() - at)
            }
        };
        if starts == 0 {
            at = piece_end(rules, classes, bytes, at);
            ends[found] = at;
            found += 1;
        } else {
            let last = at + starts.ilog2() as usize; // not read from `ends`: the next block waits for it
            let new = found + starts.count_ones() as usize;
            while found < new {
                // Eight per step, because a loop over the exact number would be mispredicted.
                for place in &mut ends[found..found + 8] {
                    *place = at + starts.trailing_zeros() as usize;
                    starts &= starts.wrapping_sub(1);
                }
                found += 8;
            }
            (at, found) = (last, new);
        }
        if found >= PIECES_PER_CALL {
            if !pieces(bytes, start, &ends[..found]) {
                return;
            }
            (start, found) = (at, 0);
        }
    }
    pieces(bytes, start, &ends[..found]);
}

/// The first position from `from` on where the text can be cut without changing its pieces, or its end.
fn safe_cut(classes: &Classes, text: &str, from: usize) -> usize {
    let (bytes, mut at) = (text.as_bytes(), from.min(text.len()));
    while !text.is_char_boundary(at) {
        at += 1;
    }
    let mut before = OTHER;
    while at < bytes.len() {
        let (class, length) = class_at(classes, bytes, at);
        if before == LETTER && class != LETTER {
            return at;
        }
        before = class;
        at += length;
    }
    at
}

/// The table of classes, from the regex engine's own Unicode tables.
fn classes() -> &'static Classes {
    static TABLE: OnceLock<Box<Classes>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = vec![OTHER; 0x110000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE), (r"[\r\n]", NEWLINE)] {
            let hir = regex_syntax::parse(pattern).expect("a fixed class");
            let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(ranges)) = hir.kind() else {
                unreachable!("a class of code points");
            };
            for range in ranges.ranges() {
                table[range.start() as usize..=range.end() as usize].fill(class);
            }
        }
        table.into_boxed_slice().try_into().expect("the length is that of the type")
    })
}

/// Class and length in bytes of the character at `at`, which must be a character boundary.
#[inline(always)]
fn class_at(classes: &Classes, bytes: &[u8], at: usize) -> (u8, usize) {
    let first = bytes[at];
    if first < 0x80 {
        return (classes[first as usize], 1);
    }
    non_ascii_class_at(classes, bytes, at)
}

/// `class_at` for a character of two to four bytes.
fn non_ascii_class_at(classes: &Classes, bytes: &[u8], at: usize) -> (u8, usize) {
    let tail = |k: usize| (bytes[at + k] & 0x3f) as usize;
    let first = bytes[at] as usize;
    let (code, length) = if first < 0xe0 {
        ((first & 0x1f) << 6 | tail(1), 2)
    } else if first < 0xf0 {
        ((first & 0x0f) << 12 | tail(1) << 6 | tail(2), 3)
    } else {
        ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4)
    };
    (classes[code], length)
}

/// End of the run of `class` that starts at `at` (may be empty).
#[inline(always)]
fn run_end(classes: &Classes, bytes: &[u8], mut at: usize, class: u8) -> usize {
    while at < bytes.len() {
        let (found, length) = class_at(classes, bytes, at);
        if found != class {
            break;
        }
        at += length;
    }
    at
}

/// End of the run of letters that starts at `at`.
///
/// Compares eight ASCII letters at once. The end of a loop over bytes would be mispredicted, which costs more than the
/// whole word.
#[inline(always)]
fn letters_end(classes: &Classes, bytes: &[u8], mut at: usize) -> usize {
    const EVERY_BYTE: u64 = 0x0101_0101_0101_0101;
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let lower = (word | (0x20 * EVERY_BYTE)) & (0x7f * EVERY_BYTE);
        let from_a = lower + (0x80 - b'a' as u64) * EVERY_BYTE; // the top bit of each byte: it is `a` or above
        let above_z = lower + (0x7f - b'z' as u64) * EVERY_BYTE; // the top bit of each byte: it is above `z`
        let others = !(from_a & !above_z & !word) & (0x80 * EVERY_BYTE);
        if others != 0 {
            at += others.trailing_zeros() as usize / 8;
            return if bytes[at] < 0x80 { at } else { run_end(classes, bytes, at, LETTER) };
        }
        at += 8;
    }
    run_end(classes, bytes, at, LETTER)
}

/// End of the piece that starts at `start`. The class of the first character, and mostly that of the second, decides
/// which alternative of the pattern matches.
fn piece_end(rules: &Rules, classes: &Classes, bytes: &[u8], start: usize) -> usize {
    let (first, length) = class_at(classes, bytes, start);
    let second = start + length;
    match first {
        LETTER => return letters_end(classes, bytes, second),
        NUMBER => return numbers_end(rules, classes, bytes, start),
        _ => {}
    }
    if bytes[start] == b'\'' {
        if let Some(end) = rules.contraction_end(bytes, second) {
            return end;
        }
    }
    let is_space = bytes[start] == b' ';
    let next = if second < bytes.len() { class_at(classes, bytes, second).0 } else { SPACE };
    if next == LETTER && (is_space || (rules.any_prefix && first != NEWLINE)) {
        return letters_end(classes, bytes, second);
    }
    if next == NUMBER && is_space && rules.digits == 0 {
        return numbers_end(rules, classes, bytes, second);
    }
    if first == OTHER || (is_space && next == OTHER) {
        let end = run_end(classes, bytes, second, OTHER);
        return if rules.newlines { run_end(classes, bytes, end, NEWLINE) } else { end };
    }
    space_end(rules, classes, bytes, start)
}

/// End of the digits that start at `start`: all of them, or at most `rules.digits`.
fn numbers_end(rules: &Rules, classes: &Classes, bytes: &[u8], start: usize) -> usize {
    if rules.digits == 0 {
        return run_end(classes, bytes, start, NUMBER);
    }
    let mut at = start;
    for _ in 0..rules.digits {
        match bytes.get(at).map(|_| class_at(classes, bytes, at)) {
            Some((NUMBER, length)) => at += length,
            _ => break,
        }
    }
    at
}

/// End of a piece of white space.
///
/// With `rules.newlines`, it ends after its last line break. Without a line break, it takes all white space at the end
/// of the text. Elsewhere it leaves the last character to the next piece, unless there is only one.
fn space_end(rules: &Rules, classes: &Classes, bytes: &[u8], start: usize) -> usize {
    let (mut at, mut last, mut after_newline) = (start, start, None);
    while at < bytes.len() {
        let (class, length) = class_at(classes, bytes, at);
        if class < SPACE {
            break;
        }
        last = at;
        at += length;
        if class == NEWLINE && rules.newlines {
            after_newline = Some(at);
        }
    }
    let at_end = at == bytes.len();
    match after_newline {
        Some(end) if !(at_end && rules.whole_end) => end,
        _ if at_end || last == start => at,
        _ => last,
    }
}
