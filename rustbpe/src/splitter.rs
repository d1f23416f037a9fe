//! Cuts text into the pieces inside which BPE merges.
//!
//! The patterns of nanochat, GPT-2 and GPT-4 are one family, told apart by a few `Rules`: they have a hand-written
//! splitter, which takes 64 bytes of ASCII at a time (`blocks.rs`) and single pieces by a table of character classes
//! elsewhere. Any other pattern goes through `fancy_regex`, the engine tiktoken uses. The table is built from the same
//! Unicode data as that engine's.

use std::sync::OnceLock;

use crate::blocks::{beginnings, BLOCK};

/// Upstream's pattern: GPT-4's with digits in groups of one or two.
pub const DEFAULT_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// What tells the patterns apart that need no regex engine.
#[derive(Clone, Copy)]
pub struct Rules {
    pub fold_case: bool,  // contractions in either case
    pub any_prefix: bool, // a word takes the character before it, unless letter, digit or line break; else a space only
    pub digits: usize,    // numbers are cut after so many digits; 0: never, and they take a space before them
    pub newlines: bool,   // punctuation takes the line breaks behind it; white space ends at its last line break
    pub whole_end: bool,  // white space at the end of the text is one piece, line breaks or not
}

const GPT2: Rules = Rules { fold_case: false, any_prefix: false, digits: 0, newlines: false, whole_end: false };
const GPT4: Rules = Rules { fold_case: true, any_prefix: true, digits: 3, newlines: true, whole_end: false };

/// The patterns as they are spelled in the wild: ours; GPT-2's by its authors, by tiktoken now and before; GPT-4's
/// (cl100k) by tiktoken now and before, which is Llama 3's too; Qwen2's.
pub const KNOWN_PATTERNS: [(&str, Rules); 7] = [
    (DEFAULT_PATTERN, Rules { digits: 2, ..GPT4 }),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", GPT2),
    (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", GPT2),
    (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", GPT2),
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        Rules { whole_end: true, ..GPT4 },
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        GPT4,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Rules { digits: 1, ..GPT4 },
    ),
];

/// One class a code point; an array, so that looking up an ASCII character needs no check of bounds.
type Classes = [u8; 0x110000];

const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3; // white space other than CR and LF
const NEWLINE: u8 = 4; // CR and LF

pub enum Splitter {
    Table(Rules, &'static Classes),
    Regex(Box<fancy_regex::Regex>),
}

const ENDS: usize = 256; // so many pieces are handed over, or up to a block's more
pub const MOST_PIECES: usize = ENDS + BLOCK;

impl Splitter {
    /// `None` means the default pattern.
    pub fn new(pattern: Option<&str>) -> Result<Self, String> {
        let pattern = pattern.unwrap_or(DEFAULT_PATTERN);
        match KNOWN_PATTERNS.iter().find(|known| known.0 == pattern) {
            Some(&(_, rules)) => Ok(Splitter::Table(rules, classes())),
            None => Self::regex(pattern),
        }
    }

    /// The general engine, for any pattern (the tests hold the table against it).
    pub fn regex(pattern: &str) -> Result<Self, String> {
        match fancy_regex::Regex::new(pattern) {
            Ok(regex) => Ok(Splitter::Regex(Box::new(regex))),
            Err(error) => Err(format!("the split pattern does not compile: {error}")),
        }
    }

    /// Cuts a long text into parts of at least `size` bytes that split as the whole text does, for several threads.
    ///
    /// The known patterns never let a piece go on from a letter to something else, and look ahead only over white
    /// space: behind the last letter of a word is always a seam. Of other patterns nothing is known: one part.
    pub fn parts<'t>(&self, text: &'t str, size: usize) -> impl Iterator<Item = &'t str> {
        let classes = match self {
            Splitter::Table(_, classes) => Some(*classes),
            Splitter::Regex(_) => None,
        };
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = classes.map_or(rest.len(), |classes| seam(classes, rest, size));
            let (part, tail) = rest.split_at(end);
            rest = tail;
            Some(part)
        })
    }

    /// Calls `pieces(text, start, ends)` with some pieces at a time, in order, until it returns false: the first is
    /// `text[start..ends[0]]`, each of the others begins where the one before it ends. With `keep_gaps`, text between
    /// matches is handed over as well (what `tokenizers` does in encoding); without, it is left out (what upstream's
    /// trainer does). The known patterns match everything, so the two are the same for them.
    pub fn split<'t>(
        &self,
        text: &'t str,
        keep_gaps: bool,
        mut pieces: impl FnMut(&'t [u8], usize, &[usize]) -> bool,
    ) -> Result<(), String> {
        let bytes = text.as_bytes();
        match self {
            Splitter::Table(rules, classes) => {
                split_by_table(rules, classes, bytes, pieces);
                Ok(())
            }
            Splitter::Regex(regex) => {
                let (mut last, mut start, mut ends) = (0, 0, Vec::with_capacity(ENDS));
                for found in regex.find_iter(text) {
                    let found = found.map_err(|error| format!("the split pattern failed on a text: {error}"))?;
                    let gap = found.start() > last;
                    if (gap && !keep_gaps) || ends.len() + 2 > ENDS {
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

fn split_by_table<'t>(
    rules: &Rules,
    classes: &Classes,
    bytes: &'t [u8],
    mut pieces: impl FnMut(&'t [u8], usize, &[usize]) -> bool,
) {
    let (mut ends, mut found) = ([0; MOST_PIECES], 0);
    let (mut start, mut at) = (0, 0);
    while at < bytes.len() {
        let mut begins = match bytes.get(at..at + BLOCK) {
            // Not where the table has to decide anyway.
            Some(block) if (block[0] | block[1]) < 0x80 => {
                beginnings(rules, block.try_into().expect("a block"), BLOCK)
            }
            Some(_) => 0,
            None => {
                let mut block = [0; BLOCK];
                block[..bytes.len() - at].copy_from_slice(&bytes[at..]);
                beginnings(rules, &block, bytes.len() - at)
            }
        };
        if begins == 0 {
            at = piece_end(rules, classes, bytes, at);
            ends[found] = at;
            found += 1;
        } else {
            let new = found + begins.count_ones() as usize;
            while found < new {
                // Eight at a time: how many there are is one more thing nobody guesses.
                for place in &mut ends[found..found + 8] {
                    *place = at + begins.trailing_zeros() as usize;
                    begins &= begins.wrapping_sub(1);
                }
                found += 8;
            }
            found = new;
            at = ends[found - 1];
        }
        if found >= ENDS {
            if !pieces(bytes, start, &ends[..found]) {
                return;
            }
            (start, found) = (at, 0);
        }
    }
    pieces(bytes, start, &ends[..found]);
}

/// The first seam at or behind `from`, or the end of the text.
fn seam(classes: &Classes, text: &str, from: usize) -> usize {
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

/// One class per code point, from the regex engine's own Unicode tables.
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
    wide_class_at(classes, bytes, at)
}

fn wide_class_at(classes: &Classes, bytes: &[u8], at: usize) -> (u8, usize) {
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

/// End of the run of letters that starts at `at`. Eight ASCII letters are seen at once: words end where a loop over
/// bytes would not expect it, and a branch that the processor guesses wrong costs more than the whole word.
#[inline(always)]
fn letters_end(classes: &Classes, bytes: &[u8], mut at: usize) -> usize {
    const EACH: u64 = 0x0101_0101_0101_0101;
    while let Some(eight) = bytes.get(at..at + 8) {
        let word = u64::from_le_bytes(eight.try_into().expect("eight bytes"));
        let lower = (word | (0x20 * EACH)) & (0x7f * EACH);
        let from_a = lower + (0x80 - b'a' as u64) * EACH; // the top bit of each byte: whether it is `a` or above,
        let above_z = lower + (0x7f - b'z' as u64) * EACH; // and whether it is above `z`
        let others = !(from_a & !above_z & !word) & (0x80 * EACH);
        if others != 0 {
            at += others.trailing_zeros() as usize / 8;
            return if bytes[at] < 0x80 { at } else { run_end(classes, bytes, at, LETTER) };
        }
        at += 8;
    }
    run_end(classes, bytes, at, LETTER)
}

/// End of the piece that starts at `start`: the alternatives of the pattern, decided by the class of the first
/// character and, mostly, of the second.
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

impl Rules {
    /// End of `'s 'd 'm 't 'll 've 're`; in either case, if so ruled, and then `'ſ`, which folds to `'s`, as well. `at`
    /// is behind the apostrophe.
    pub fn contraction_end(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let fold = if self.fold_case { 0x20 } else { 0 };
        let lower = |k: usize| bytes.get(at + k).map_or(0, |byte| byte | fold);
        match (lower(0), lower(1)) {
            (b's' | b'd' | b'm' | b't', _) => Some(at + 1),
            (b'l', b'l') | (b'v', b'e') | (b'r', b'e') => Some(at + 2),
            _ if self.fold_case && bytes[at..].starts_with("ſ".as_bytes()) => Some(at + 2),
            _ => None,
        }
    }
}

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

/// White space: up to its last line break, if so ruled; without one, all of it at the end of the text, else all but its
/// last character (which belongs to the next piece), unless that is all there is.
fn space_end(rules: &Rules, classes: &Classes, bytes: &[u8], start: usize) -> usize {
    let (mut at, mut last, mut behind_newline) = (start, start, None);
    while at < bytes.len() {
        let (class, length) = class_at(classes, bytes, at);
        if class < SPACE {
            break;
        }
        last = at;
        at += length;
        if class == NEWLINE && rules.newlines {
            behind_newline = Some(at);
        }
    }
    let at_end = at == bytes.len();
    match behind_newline {
        Some(end) if !(at_end && rules.whole_end) => end,
        _ if at_end || last == start => at,
        _ => last,
    }
}
