//! What is read from disk once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::lock;

/// Things by name, with the hash of their contents: another process may put others in their place meanwhile.
pub(crate) struct Opened<T>(Mutex<HashMap<String, (String, Arc<T>)>>);

impl<T> Default for Opened<T> {
    fn default() -> Self {
        Opened(Mutex::default())
    }
}

impl<T> Opened<T> {
    pub fn get(&self, name: &str, hash: &str) -> Option<Arc<T>> {
        let kept = lock(&self.0);
        let (of, thing) = kept.get(name)?;
        (of == hash).then(|| thing.clone())
    }

    /// Whoever kept the same first counts: prompts are cached by model.
    pub fn keep(&self, name: &str, hash: &str, thing: T) -> Arc<T> {
        let mut kept = lock(&self.0);
        match kept.get(name) {
            Some((of, first)) if of == hash => first.clone(),
            _ => {
                let thing = Arc::new(thing);
                kept.insert(name.into(), (hash.into(), thing.clone()));
                thing
            }
        }
    }

    pub fn forget(&self, name: &str) {
        lock(&self.0).remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_contents_of_the_same_name_are_another_thing() {
        let kept = Opened::default();
        let first = kept.keep("policy", "a", 1);
        assert!(Arc::ptr_eq(&first, &kept.keep("policy", "a", 2)));
        assert_eq!(kept.get("policy", "a").as_deref(), Some(&1));
        assert_eq!(kept.get("policy", "b"), None);
        assert_eq!(*kept.keep("policy", "b", 3), 3);
        assert_eq!(kept.get("policy", "a"), None);
        kept.forget("policy");
        assert_eq!(kept.get("policy", "b"), None);
    }
}
