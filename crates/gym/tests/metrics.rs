//! Golden tables of the metrics; expected values follow the official HotpotQA script.

use gym::metrics::{accuracy, exact_match, normalise, token_f1};
use gym::{AnswerOption, Gold, Question, QuestionId};

fn gold(answers: &str) -> Gold {
    Gold {
        answers: answers.split('|').map(str::to_owned).collect(),
        ..Gold::default()
    }
}

#[test]
fn normalisation_is_the_official_one() {
    for (text, expected) in [
        ("The Beatles", "beatles"),
        ("  a  cat, an owl & the dog! ", "cat owl dog"),
        ("U.S.A.", "usa"),
        ("A.N. Other", "other"),
        ("theatre", "theatre"),
        ("Anthem", "anthem"),
        ("jack-in-the-box", "jackinthebox"),
        ("1,000", "1000"),
        ("É́cole", "é́cole"),
        ("the", ""),
        ("", ""),
        ("under_score", "underscore"),
        ("from–the–sea", "from– –sea"),
        ("\"quoted\"", "quoted"),
    ] {
        assert_eq!(normalise(text), expected, "{text}");
    }
}

#[test]
fn exact_match_and_f1_are_the_official_ones() {
    #[rustfmt::skip]
    let cases = [
        // prediction, gold answers, EM, F1
        ("Paris", "Paris", 1.0, 1.0),
        ("paris.", "Paris", 1.0, 1.0),
        ("The Paris", "Paris", 1.0, 1.0),
        ("Paris, France", "Paris", 0.0, 2.0 / 3.0),
        ("Paris", "Paris, France", 0.0, 2.0 / 3.0),
        ("London", "Paris", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("", "", 1.0, 0.0),
        ("the", "a", 1.0, 0.0),
        ("yes", "yes", 1.0, 1.0),
        ("Yes.", "yes", 1.0, 1.0),
        ("yes", "no", 0.0, 0.0),
        ("yes it is", "yes", 0.0, 0.0),
        ("yes", "yes it is", 0.0, 0.0),
        ("no", "no one", 0.0, 0.0),
        ("noanswer", "noanswer at all", 0.0, 0.0),
        ("a a b", "a b b", 0.0, 2.0 / 3.0),
        ("b b", "b", 0.0, 2.0 / 3.0),
        ("New York", "NYC|New York City", 0.0, 0.8),
        ("NYC", "New York City|NYC", 1.0, 1.0),
        ("1969", "1,969", 1.0, 1.0),
        ("annulled", "null", 0.0, 0.0),
    ];
    for (prediction, answers, em, f1) in cases {
        let gold = gold(answers);
        assert_eq!(
            exact_match(prediction, &gold),
            em,
            "EM of {prediction:?} for {answers:?}"
        );
        assert!(
            (token_f1(prediction, &gold) - f1).abs() < 1e-12,
            "F1 of {prediction:?} for {answers:?}: {}",
            token_f1(prediction, &gold)
        );
    }
    assert_eq!(exact_match("x", &Gold::default()), 0.0);
    assert_eq!(token_f1("x", &Gold::default()), 0.0);
}

fn medical() -> Question {
    let options = [
        ("A", "Malignant tumour"),
        ("B", "Beta blocker"),
        ("C", "Benign cyst"),
        ("D", "A 21-year-old scar"),
    ];
    Question {
        id: QuestionId("q".into()),
        text: "What is it?".into(),
        options: options
            .map(|(label, text)| AnswerOption {
                label: label.into(),
                text: text.into(),
            })
            .into(),
    }
}

#[test]
fn options_are_read_without_guessing() {
    let question = medical();
    #[rustfmt::skip]
    let cases = [
        ("C", "C"), ("c", "C"), ("(C)", "C"), ("C.", "C"), ("C)", "C"), ("[C]", "C"), ("**C**", "C"), (" C\n", "C"), ("\"C\"", "C"),
        ("C. Benign cyst", "C"), ("C: Benign cyst", "C"), ("(C) Benign cyst", "C"), ("C) benign cyst.", "C"), ("C - Benign cyst", "C"),
        ("Benign cyst", "C"), ("the benign cyst", "C"), ("BENIGN CYST.", "C"),
        ("The answer is C", "C"), ("The answer is C.", "C"), ("The answer is (C).", "C"), ("the correct answer is option C", "C"),
        ("Answer: C", "C"), ("Final answer: **C**", "C"), ("option C", "C"), ("Option (C)", "C"), ("choice C", "C"),
        ("The answer is C because it is soft", "C"), ("The answer is benign cyst.", "C"), ("The answer is A.", "A"),
        ("It could be option A, but the answer is C.", "C"),
        ("A 21-year-old scar", "D"),
        ("Because it is benign", ""), ("A 21-year-old man has it", ""), ("A benign growth", ""), ("Depends", ""),
        ("The answer is a mystery", ""), ("The answer is A 21-year-old man", ""), ("The answer is Because", ""),
        ("Louis Armstrong is great", ""), ("", ""), ("E", ""), ("B. Benign cyst", ""), ("A-level", ""), ("Dr. Bob", ""),
        ("B, C", ""), ("B and C", ""), ("B or C.", ""), ("(B), (C)", ""), ("B/C", ""), ("A, B and C", ""), ("B; C", ""),
        ("The answer is B, C.", ""), ("The answer is B or C", ""), ("Answer: (B) and (C)", ""),
        ("The answer is C. No, the answer is B and C", ""), ("B, C are wrong. The answer is C.", "C"),
        ("C, a benign cyst", "C"), ("The answer is C, A 21-year-old scar is not", "C"), ("C. A cyst", "C"),
    ];
    for (prediction, expected) in cases {
        for label in ["A", "B", "C", "D"] {
            let right = f64::from(label == expected);
            assert_eq!(
                accuracy(prediction, &question, &gold(label)),
                Some(right),
                "{prediction:?} for {label}"
            );
        }
    }
    assert_eq!(accuracy("C", &question, &gold("Benign cyst")), Some(1.0));
    assert_eq!(accuracy("C", &question, &gold("Something else")), None);
    let free = Question {
        options: Vec::new(),
        ..question
    };
    assert_eq!(accuracy("C", &free, &gold("C")), None);
}
