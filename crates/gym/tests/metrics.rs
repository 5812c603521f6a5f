//! Golden tables of the metrics; expected values follow the official HotpotQA script.

use std::sync::Arc;

use gym::metrics::{accuracy, answer_supported, exact_match, normalise, token_f1};
use gym::{Action, AnswerOption, Candidate, Gold, Hit, Passage, Question, QuestionId, Step, Usage};

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

#[test]
fn an_answer_is_supported_where_a_passage_says_it() {
    let hit = |title: &str, text: &str| Hit {
        passage: Arc::new(Passage {
            id: title.into(),
            title: title.into(),
            text: text.into(),
        }),
        score: 1.0,
        rank: 1,
    };
    let search = Candidate {
        text: String::new(),
        reasoning: None,
        action: Action::Search {
            query: "chad".into(),
            predicted_answer: None,
        },
        token_ids: Vec::new(),
        token_logprobs: Vec::new(),
        multiplicity: 1,
        redundant: false,
        reward: None,
    };
    let step = Step {
        step_idx: 0,
        truncated: false,
        prompt: None,
        dropped: Vec::new(),
        candidates: vec![search],
        chosen: 0,
        verdict: None,
        opinions: Vec::new(),
        hits: vec![
            hit("Chad: Borders", "Libya 1,050 km, and the Niger."),
            hit("Mali", "Its capital is Bamako."),
        ],
        finding: None,
        usage: Usage::default(),
    };
    let question = |options: &[&str]| Question {
        id: QuestionId("q".into()),
        text: "Which?".into(),
        options: options
            .iter()
            .map(|text| AnswerOption {
                label: text[..1].into(),
                text: (*text).into(),
            })
            .collect(),
    };
    let steps = [step];
    let supported = |answer| answer_supported(answer, &question(&[]), &steps);
    for (answer, expected) in [
        ("Bamako.", Some(1.0)),
        ("The capital", Some(1.0)),
        ("1,050", Some(1.0)),
        ("Niger, Mali", Some(1.0)),
        ("Niger, Ghana", Some(0.0)),
        ("Nigeria", Some(0.0)),
        ("Nige", Some(0.0)),
        ("50", Some(0.0)),
        ("", Some(0.0)),
        ("the", Some(0.0)),
        ("Yes", None),
    ] {
        assert_eq!(supported(answer), expected, "{answer}");
    }
    assert_eq!(
        answer_supported("Bamako", &question(&["Bamako", "Cairo"]), &steps),
        None
    );
    assert_eq!(answer_supported("Bamako", &question(&[]), &[]), Some(0.0));
}
