//! Bytes of tokens into text: valid UTF-8 as it comes, held back where a stop string may have begun.

/// Text of one sample, as it grows.
pub struct TextStream {
    stops: Vec<String>,
    /// Bytes of an unfinished character.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    pub text: String,
    pub stopped: bool,
}

impl TextStream {
    pub fn new(stops: &[String]) -> TextStream {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        TextStream {
            stops,
            bytes: Vec::new(),
            held: String::new(),
            text: String::new(),
            stopped: false,
        }
    }

    /// Takes a token's bytes; returns the text that is now certain.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        if self.stopped {
            return String::new();
        }
        self.bytes.extend_from_slice(bytes);
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.bytes.clear();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    self.held.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    match error.error_len() {
                        Some(len) => {
                            self.held.push('\u{fffd}');
                            self.bytes.drain(..valid + len);
                        }
                        None => {
                            self.bytes.drain(..valid);
                            break;
                        }
                    }
                }
            }
        }
        let stop = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        let certain = match stop {
            Some(at) => {
                self.stopped = true;
                at
            }
            None => self.held.len() - self.pending_stop(),
        };
        self.release(certain)
    }

    /// The end: everything held back is certain.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        if !self.bytes.is_empty() {
            self.held.push('\u{fffd}');
            self.bytes.clear();
        }
        self.release(self.held.len())
    }

    fn release(&mut self, len: usize) -> String {
        let certain: String = self.held.drain(..len).collect();
        self.text.push_str(&certain);
        certain
    }

    /// Length of the longest end of `held` that begins a stop string.
    fn pending_stop(&self) -> usize {
        self.held
            .char_indices()
            .map(|(at, _)| &self.held[at..])
            .find(|end| self.stops.iter().any(|stop| stop.starts_with(end)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_and_split_characters_never_show() {
        let mut stream = TextStream::new(&["\n\nEND".to_string()]);
        let mut shown = String::new();
        for byte in "a é 🐍\n\nEN x\n\nENDtail".as_bytes() {
            shown += &stream.push(&[*byte]);
        }
        shown += &stream.finish();
        assert_eq!(shown, "a é 🐍\n\nEN x");
        assert_eq!(stream.text, shown);
        assert!(stream.stopped);
    }

    #[test]
    fn bytes_that_are_not_text_become_the_replacement_character() {
        let mut stream = TextStream::new(&[]);
        let mut shown = stream.push(&[b'a', 0xff, b'b', 0xf0]);
        shown += &stream.finish();
        assert_eq!(shown, "a\u{fffd}b\u{fffd}");
    }
}
