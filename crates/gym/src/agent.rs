//! The six agents: what each shows the model, and how it reads the model's text.

use std::fmt;
use std::str::FromStr;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use serde::{Deserialize, Serialize};

use crate::comparison::comparisons;
use crate::excerpt;
use crate::parse::{Fields, read_fields};
use crate::{Action, Grammar, Hit, Message, Prompt, Role, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentKind {
    Direct,
    Cot,
    Rag,
    React,
    #[serde(rename = "search-o1")]
    SearchO1,
    Research,
}

impl AgentKind {
    pub const ALL: [AgentKind; 6] = [
        AgentKind::Direct,
        AgentKind::Cot,
        AgentKind::Rag,
        AgentKind::React,
        AgentKind::SearchO1,
        AgentKind::Research,
    ];

    /// May take several search steps, each chosen by the model.
    pub fn searches(self) -> bool {
        matches!(self, AgentKind::React | AgentKind::SearchO1 | AgentKind::Research)
    }

    pub fn name(self) -> &'static str {
        match self {
            AgentKind::Direct => "direct",
            AgentKind::Cot => "cot",
            AgentKind::Rag => "rag",
            AgentKind::React => "react",
            AgentKind::SearchO1 => "search-o1",
            AgentKind::Research => "research",
        }
    }
}

/// How much the prompts say: Markdown and JSON for models of 3B and more, short lines for small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    Full,
    Compact,
}

impl PromptStyle {
    pub const ALL: [PromptStyle; 2] = [PromptStyle::Full, PromptStyle::Compact];

    pub fn name(self) -> &'static str {
        match self {
            PromptStyle::Full => "full",
            PromptStyle::Compact => "compact",
        }
    }
}

/// A name that is not one of the choices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {what} is called `{name}`: choose {choices}")]
pub struct UnknownName {
    pub what: &'static str,
    pub name: String,
    pub choices: String,
}

pub(crate) fn by_name<T: Copy>(
    what: &'static str,
    name: &str,
    all: &[T],
    name_of: fn(T) -> &'static str,
) -> Result<T, UnknownName> {
    all.iter()
        .copied()
        .find(|&value| name_of(value) == name)
        .ok_or_else(|| UnknownName {
            what,
            name: name.to_owned(),
            choices: all.iter().map(|&value| name_of(value)).collect::<Vec<_>>().join(", "),
        })
}

impl FromStr for AgentKind {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<AgentKind, UnknownName> {
        by_name("agent", name, &AgentKind::ALL, AgentKind::name)
    }
}

impl FromStr for PromptStyle {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<PromptStyle, UnknownName> {
        by_name("prompt style", name, &PromptStyle::ALL, PromptStyle::name)
    }
}

impl fmt::Display for AgentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for PromptStyle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

macro_rules! templates {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../assets/prompts/", $name)))),*]
    };
}

/// System messages are named by who reads them; their user messages are `history`, `reader-user`, `judge-user`.
const TEMPLATES: &[(&str, &str)] = templates![
    "direct.full.j2",
    "cot.full.j2",
    "rag.full.j2",
    "react.full.j2",
    "search-o1.full.j2",
    "research.full.j2",
    "choice.full.j2",
    "history.full.j2",
    "reader.full.j2",
    "reader-user.full.j2",
    "direct.compact.j2",
    "cot.compact.j2",
    "rag.compact.j2",
    "react.compact.j2",
    "search-o1.compact.j2",
    "research.compact.j2",
    "history.compact.j2",
    "reader.compact.j2",
    "reader-user.compact.j2",
    "judge.full.j2",
    "judge-user.full.j2",
    "judge.compact.j2",
    "judge-user.compact.j2",
];

/// Longest line of each part in constrained decoding.
const THOUGHT_BYTES: usize = 600;
const CLAIM_BYTES: usize = 200;
const QUERY_BYTES: usize = 160;
const ANSWER_BYTES: usize = 120;

/// The prompts of one style.
#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    style: PromptStyle,
    templates: Environment<'static>,
}

impl Prompts {
    pub fn new(style: PromptStyle) -> Prompts {
        let mut templates = Environment::new();
        templates.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .expect("the default delimiters are valid"),
        );
        templates.add_filter("line", one_line);
        templates.add_filter("excerpt", |text: String, query: String, rank: u32| {
            excerpt::shown(&query, &text, rank)
        });
        for (name, source) in TEMPLATES {
            templates
                .add_template(name, source)
                .expect("built-in templates parse: a test renders each");
        }
        Prompts { style, templates }
    }

    /// A system and a user message, by the names of their templates.
    pub fn messages(&self, system: &str, user: &str, values: Value) -> Prompt {
        let message = |role, name: &str| Message {
            role,
            content: self.render(name, &values),
        };
        Prompt {
            messages: vec![message(Role::System, system), message(Role::User, user)],
        }
    }

    fn render(&self, name: &str, values: &Value) -> String {
        let text = self
            .templates
            .get_template(&format!("{name}.{}.j2", self.style))
            .and_then(|template| template.render(values))
            .expect("built-in templates render: a test renders each");
        text.trim_end().to_owned()
    }
}

/// What the templates of histories need: the question and what was found so far.
///
/// `reads`: findings are shown, not passages.
pub(crate) fn shown(state: &State, reads: bool) -> Value {
    let history: Vec<Value> = state
        .history
        .iter()
        .map(|turn| {
            context! {
                query => turn.query.as_str(),
                finding => turn.finding.as_deref(),
                passages => passages(&turn.hits),
            }
        })
        .collect();
    let found: Vec<(&str, &str)> = state
        .history
        .iter()
        .filter_map(|turn| Some((turn.query.as_str(), turn.finding.as_deref()?)))
        .collect();
    let comparisons: Vec<Value> = comparisons(&found)
        .into_iter()
        .map(|line| context! { label => line.label, text => line.text })
        .collect();
    context! {
        question => state.question.text.as_str(),
        options => state
            .question
            .options
            .iter()
            .map(|option| context! { label => option.label.as_str(), text => option.text.as_str() })
            .collect::<Vec<_>>(),
        history => history,
        comparisons => comparisons,
        reads => reads,
        truncated => state.truncated,
    }
}

/// An agent with its prompts.
#[derive(Clone, Debug)]
pub struct Agent {
    kind: AgentKind,
    prompts: Prompts,
}

impl Agent {
    pub fn new(kind: AgentKind, style: PromptStyle) -> Agent {
        Agent {
            kind,
            prompts: Prompts::new(style),
        }
    }

    pub fn kind(&self) -> AgentKind {
        self.kind
    }

    pub fn style(&self) -> PromptStyle {
        self.prompts.style
    }

    /// May take several search steps, each chosen by the model.
    pub fn searches(&self) -> bool {
        self.kind.searches()
    }

    /// A reader condenses what a query retrieved; the model sees its findings, not the passages.
    pub fn reads(&self) -> bool {
        matches!(self.kind, AgentKind::SearchO1 | AgentKind::Research)
    }

    /// The action that needs no model: RAG first searches for the question itself.
    pub fn fixed_action(&self, state: &State) -> Option<Action> {
        (self.kind == AgentKind::Rag && state.history.is_empty() && !state.truncated).then(|| Action::Search {
            query: state.question.text.clone(),
            predicted_answer: None,
        })
    }

    /// The messages for a state: instructions, then the question and its history.
    pub fn prompt(&self, state: &State) -> Prompt {
        // Direct and CoT answer from memory.
        let values = if matches!(self.kind, AgentKind::Direct | AgentKind::Cot) {
            context! { history => Vec::<Value>::new(), ..shown(state, false) }
        } else {
            shown(state, self.reads())
        };
        self.prompts.messages(self.kind.name(), "history", values)
    }

    /// What the answer to `reader_prompt` condenses: `hits` for `query`, in the light of the question.
    pub fn reader_prompt(&self, state: &State, query: &str, hits: &[Hit]) -> Prompt {
        let user = context! {
            question => state.question.text.as_str(),
            query => query,
            passages => passages(hits),
        };
        self.prompts.messages("reader", "reader-user", user)
    }

    /// The texts this agent may write in a state; `None` for the full style, whose JSON is free text.
    pub fn grammar(&self, state: &State) -> Option<Grammar> {
        if self.style() == PromptStyle::Full {
            return None;
        }
        let literal = |text: &str| Grammar::Literal(text.into());
        let labelled = |label: &str, max_bytes| vec![literal(label), Grammar::Line { max_bytes }];
        let answer = |label: &str| vec![literal(label), answer_grammar(state)];
        if state.truncated {
            return Some(Grammar::Sequence(answer("Answer: ")));
        }
        Some(match self.kind {
            AgentKind::Direct => Grammar::Sequence(answer("Answer: ")),
            AgentKind::Cot | AgentKind::Rag => {
                Grammar::Sequence([labelled("Thought: ", THOUGHT_BYTES), answer("Answer: ")].concat())
            }
            AgentKind::React | AgentKind::SearchO1 => Grammar::OneOf(vec![
                Grammar::Sequence(labelled("Search: ", QUERY_BYTES)),
                Grammar::Sequence(answer("Answer: ")),
            ]),
            AgentKind::Research => {
                // A line takes its own line feed; a label of a closed set does not.
                let mut draft = answer("Draft: ");
                if matches!(draft[1], Grammar::OneOf(_)) {
                    draft.push(literal("\n"));
                }
                Grammar::Sequence(
                    [
                        draft,
                        labelled("Unsupported: ", CLAIM_BYTES),
                        labelled("Search: ", QUERY_BYTES),
                    ]
                    .concat(),
                )
            }
        })
    }

    pub fn reader_grammar(&self) -> Option<Grammar> {
        (self.style() == PromptStyle::Compact).then(|| {
            Grammar::Sequence(vec![
                Grammar::Literal("Found: ".into()),
                Grammar::Line { max_bytes: CLAIM_BYTES },
            ])
        })
    }

    /// The reasoning and the action that a text spells. Total: what cannot be read is `Malformed`.
    ///
    /// A text with both a query and an answer searches, unless the answer's line comes first.
    pub fn parse(&self, state: &State, text: &str) -> (Option<String>, Action) {
        let Fields {
            thought,
            answer,
            query,
            unsupported,
            query_given,
            answer_first,
            cut,
            ..
        } = read_fields(text);
        let malformed = |missing: &str| Action::Malformed {
            reason: if cut {
                format!("{missing}: the text is cut off")
            } else {
                missing.to_owned()
            },
        };
        let action = if state.truncated || !self.searches() {
            let only_answer = || (!query_given).then(|| bare_answer(text)).flatten();
            let bare = state.truncated || self.kind == AgentKind::Direct;
            match answer.or_else(|| bare.then(only_answer).flatten()) {
                Some(answer) => Action::Finish { answer },
                None => malformed("no answer"),
            }
        } else {
            match (query, answer) {
                // ReSearch says what it would answer in every step: its query counts.
                (Some(_), Some(answer)) if answer_first && self.kind != AgentKind::Research => {
                    Action::Finish { answer }
                }
                (Some(query), answer) => Action::Search {
                    query,
                    predicted_answer: answer.filter(|_| self.kind == AgentKind::Research),
                },
                (None, Some(answer)) => Action::Finish { answer },
                (None, None) => malformed("neither a query nor an answer"),
            }
        };
        (thought.or(unsupported), action)
    }

    /// The reader's finding: its labelled part if there is one, else all it wrote.
    pub fn parse_finding(&self, text: &str) -> String {
        let fields = read_fields(text);
        let finding = fields.finding.or(fields.answer);
        one_line(finding.unwrap_or_else(|| {
            if fields.cut {
                "not found".into()
            } else {
                text.to_owned()
            }
        }))
    }
}

fn passages(hits: &[Hit]) -> Vec<Value> {
    hits.iter()
        .map(
            |hit| context! { title => hit.passage.title.as_str(), text => hit.passage.text.as_str(), rank => hit.rank },
        )
        .collect()
}

/// Any option's label where labels can be told apart by one byte, else a line.
fn answer_grammar(state: &State) -> Grammar {
    let labels: Vec<&str> = state
        .question
        .options
        .iter()
        .map(|option| option.label.as_str())
        .collect();
    let mut distinct = labels.clone();
    distinct.sort_unstable();
    distinct.dedup();
    if labels.len() > 1 && distinct.len() == labels.len() && labels.iter().all(|label| label.len() == 1) {
        return Grammar::OneOf(labels.into_iter().map(|label| Grammar::Literal(label.into())).collect());
    }
    Grammar::Line {
        max_bytes: ANSWER_BYTES,
    }
}

/// A text that is one short line without markup: an answer whose label was left out.
fn bare_answer(text: &str) -> Option<String> {
    let text = text.trim();
    let plain = !text.is_empty() && text.len() <= ANSWER_BYTES && !text.contains(['\n', '{', '}', '`', ':']);
    plain.then(|| text.to_owned())
}

fn one_line(text: String) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
