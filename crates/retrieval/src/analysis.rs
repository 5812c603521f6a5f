//! From text to index terms. Part of the index format: a change here needs a new `FORMAT`.

use tantivy::tokenizer::{
    AsciiFoldingFilter, Language, LowerCaser, RemoveLongFilter, Stemmer, StopWordFilter, TextAnalyzer, Token,
    TokenStream, Tokenizer,
};

/// Longer words are not indexed: they are encoded data, not language.
const MAX_WORD_BYTES: usize = 256;

/// English function words, question words and the tails of contractions.
const STOP_WORDS: &str = "a an and are as at be but by did do does for from had has have he her his how \
    if in into is it its no not of on or s she such t that the their then there these they this to was were \
    what when where which who whom whose why will with";

/// A word of a text and the term it is indexed under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Byte offsets in the text, on character boundaries.
    pub start: usize,
    pub end: usize,
    pub term: String,
}

/// The indexed words of `text`: lower case, without accents, stop words or English endings.
pub fn words(text: &str) -> Vec<Word> {
    Analyzer::new().words(text)
}

/// The analysis with its buffers, for many texts.
#[derive(Clone)]
pub(crate) struct Analyzer(TextAnalyzer);

impl Analyzer {
    pub(crate) fn new() -> Analyzer {
        let stop_words = StopWordFilter::remove(STOP_WORDS.split_whitespace().map(str::to_owned));
        Analyzer(
            TextAnalyzer::builder(WordTokenizer::default())
                .filter(RemoveLongFilter::limit(MAX_WORD_BYTES))
                .filter(LowerCaser)
                .filter(AsciiFoldingFilter)
                .filter(stop_words)
                .filter(Stemmer::new(Language::English))
                .build(),
        )
    }

    pub(crate) fn words(&mut self, text: &str) -> Vec<Word> {
        let mut words = Vec::new();
        self.0.token_stream(text).process(&mut |token| {
            if !token.text.is_empty() {
                words.push(Word {
                    start: token.offset_from,
                    end: token.offset_to,
                    term: token.text.clone(),
                });
            }
        });
        words
    }
}

/// Splits at everything that is not a letter or digit; each character of a script without spaces is a
/// word; combining accents belong to their word but not to its term.
#[derive(Clone, Default)]
struct WordTokenizer {
    token: Token,
}

struct WordStream<'a> {
    text: &'a str,
    next_byte: usize,
    token: &'a mut Token,
}

impl Tokenizer for WordTokenizer {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        WordStream {
            text,
            next_byte: 0,
            token: &mut self.token,
        }
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        self.token.text.clear();
        self.token.position = self.token.position.wrapping_add(1);
        let rest = &self.text[self.next_byte..];
        let Some(skipped) = rest.find(char::is_alphanumeric) else {
            self.next_byte = self.text.len();
            return false;
        };
        let start = self.next_byte + skipped;
        let mut end = start;
        for c in self.text[start..].chars() {
            let first = end == start;
            let unspaced = is_unspaced(c);
            if is_combining(c) {
                end += c.len_utf8();
                continue;
            }
            if !c.is_alphanumeric() || (unspaced && !first) {
                break;
            }
            self.token.text.push(c);
            end += c.len_utf8();
            if unspaced {
                break;
            }
        }
        self.token.offset_from = start;
        self.token.offset_to = end;
        self.next_byte = end;
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

fn is_combining(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}')
}

/// Chinese characters, kana, Thai.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{e00}'..='\u{e7f}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Vec<String> {
        words(text).into_iter().map(|w| w.term).collect()
    }

    #[test]
    fn folds_case_accents_and_endings() {
        assert_eq!(terms("The Directors of Alû, cafe\u{301}"), ["director", "alu", "cafe"]);
        assert_eq!(terms("Malcolm X's"), ["malcolm", "x"]);
    }

    #[test]
    fn a_script_without_spaces_gives_one_word_per_character() {
        assert_eq!(terms("東京x塔"), ["東", "京", "x", "塔"]);
    }

    #[test]
    fn offsets_cut_the_word_out_of_the_text() {
        let text = "🦀 cafe\u{301}s!";
        let found = words(text);
        assert_eq!(&text[found[0].start..found[0].end], "cafe\u{301}s");
    }
}
