//! The split patterns that need no regex engine, and the rules that tell them apart.

/// Upstream's pattern: GPT-4's with digits in groups of one or two.
pub const DEFAULT_PATTERN: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";

/// How a known pattern splits text.
#[derive(Clone, Copy)]
pub struct Rules {
    /// Contractions match in upper and lower case.
    pub fold_case: bool,
    /// A word takes the character before it, unless that is a letter, digit or line break. If false: only a space.
    pub any_prefix: bool,
    /// Maximum number of digits per piece. 0: no maximum, and a number takes the space before it.
    pub digits: usize,
    /// Punctuation takes the line breaks after it. White space ends at its last line break.
    pub newlines: bool,
    /// White space at the end of the text is one piece, with or without line breaks.
    pub whole_end: bool,
}

const GPT2: Rules = Rules { fold_case: false, any_prefix: false, digits: 0, newlines: false, whole_end: false };
const GPT4: Rules = Rules { fold_case: true, any_prefix: true, digits: 3, newlines: true, whole_end: false };

/// Each known pattern in every spelling in use, with its rules.
pub const KNOWN_PATTERNS: [(&str, Rules); 7] = [
    // nanochat
    (DEFAULT_PATTERN, Rules { digits: 2, ..GPT4 }),
    // GPT-2: by its authors, by tiktoken today, by tiktoken before
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", GPT2),
    (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", GPT2),
    (r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", GPT2),
    // GPT-4 (cl100k): by tiktoken today; by tiktoken before, which is Llama 3's pattern too
    (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        Rules { whole_end: true, ..GPT4 },
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        GPT4,
    ),
    // Qwen2
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Rules { digits: 1, ..GPT4 },
    ),
];

impl Rules {
    /// The end of a contraction: `'s 'd 'm 't 'll 've 're`. `at` is the position after the apostrophe.
    ///
    /// With `fold_case` it matches in either case, and `'ſ` too, because `ſ` folds to `s`.
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
