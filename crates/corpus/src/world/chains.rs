//! The parts questions are made of: how a country is described, what is asked, and each hop's gold.

use gym::{Gold, GoldPassage, LabelledQuestion, Question, QuestionId, SubQuestion};

use super::facts::{Country, Relation};
use super::sections;

/// The section group that lists a country's neighbours.
pub(super) const BORDERS: &str = "Borders and elevation";

/// What the almanac writes before a leader's name.
#[rustfmt::skip]
const TITLES: &[&str] = &[
    "Amir", "Chairman", "Chancellor", "Confederation", "Council", "Duke", "Emperor", "Executive", "Government", "Grand",
    "Interim", "King", "Leader", "Minister", "Ministers", "Pope", "Premier", "President", "Prime", "Prince", "Queen",
    "Republic", "Secretary", "State", "Sultan", "Supreme", "Swiss", "and", "minister", "of", "or", "president", "prime",
    "the",
];

/// "the country whose capital is Vienna".
pub(super) fn describe(relation: Relation, value: &str) -> String {
    match relation {
        Relation::Capital => format!("the country whose capital is {value}"),
        Relation::HighestPoint => format!("the country whose highest point is {value}"),
        Relation::InternetCode => format!("the country with the internet country code {value}"),
        Relation::Anthem => format!("the country whose national anthem is \"{value}\""),
        Relation::Independence => format!("the country that became independent on {value}"),
        Relation::ChiefOfState => format!("the country whose chief of state is {value}"),
        Relation::HeadOfGovernment => format!("the country whose head of government is {value}"),
        Relation::Currency => format!("the country whose currency is {value}"),
        Relation::Population => format!("the country with {value} inhabitants"),
        Relation::Area => format!("the country with an area of {value}"),
    }
}

/// "What is the capital of Austria?", in one of three wordings; one that ends in `what` where that is a
/// clause, since "the country that … cover" cannot be read.
pub(super) fn ask(relation: Relation, what: &str, wording: u64) -> String {
    let wordings: [String; 3] = match relation {
        Relation::Capital => [
            format!("What is the capital of {what}?"),
            format!("Which city is the capital of {what}?"),
            format!("Name the capital of {what}."),
        ],
        Relation::HighestPoint => [
            format!("What is the highest point of {what}?"),
            format!("Which is the highest point in {what}?"),
            format!("What is the highest elevation in {what} called?"),
        ],
        Relation::InternetCode => [
            format!("What is the internet country code of {what}?"),
            format!("Which internet country code belongs to {what}?"),
            format!("What internet country code does {what} have?"),
        ],
        Relation::Anthem => [
            format!("What is the national anthem of {what} called?"),
            format!("What is the name of the national anthem of {what}?"),
            format!("Which song is the national anthem of {what}?"),
        ],
        Relation::Independence => [
            format!("When did {what} become independent?"),
            format!("What is the date of independence of {what}?"),
            format!("On what date did {what} gain independence?"),
        ],
        Relation::ChiefOfState => [
            format!("Who is the chief of state of {what}?"),
            format!("Who serves as chief of state of {what}?"),
            format!("Which person is the chief of state of {what}?"),
        ],
        Relation::HeadOfGovernment => [
            format!("Who is the head of government of {what}?"),
            format!("Who leads the government of {what}?"),
            format!("Which person is the head of government of {what}?"),
        ],
        Relation::Currency => [
            format!("What currency is used in {what}?"),
            format!("What is the currency of {what}?"),
            format!("In what currency does one pay in {what}?"),
        ],
        Relation::Population => [
            format!("What is the population of {what}?"),
            format!("How many people live in {what}?"),
            format!("How many inhabitants does {what} have?"),
        ],
        Relation::Area => [
            format!("What is the total area of {what}?"),
            format!("How large is {what}?"),
            format!("How many square kilometres does {what} cover in total?"),
        ],
    };
    let clause = what.ends_with(" with");
    let in_order = (0..3).map(|n| &wordings[((wording % 3 + n) % 3) as usize]);
    let fits = |text: &&String| !clause || text.trim_end_matches(['?', '.']).ends_with(what);
    in_order.clone().find(fits).unwrap_or(&wordings[0]).clone()
}

/// One hop: what is looked up, what it yields, and where it stands.
pub(super) fn hop(question: String, answer: &str, country: &Country, group: &str) -> SubQuestion {
    let title = Some(sections::title(country.place, group));
    SubQuestion {
        question,
        answer: answer.to_owned(),
        title,
    }
}

/// The hop from a description to its country.
pub(super) fn identify(country: &Country, relation: Relation) -> Option<(String, SubQuestion)> {
    let value = country.value(relation)?;
    let what = describe(relation, value);
    let question = format!("Which is {what}?");
    let hop = hop(question, &country.place.name, country, relation.group());
    Some((what, hop))
}

/// The last hop: a fact of a country that the hops before have found.
pub(super) fn look_up(country: &Country, relation: Relation) -> Option<SubQuestion> {
    let value = country.value(relation)?;
    let question = ask(relation, &country.place.in_sentence(), 0);
    Some(hop(question, value, country, relation.group()))
}

/// Accepted spellings of a country's name, the almanac's short form first.
pub(super) fn names(country: &Country) -> Vec<String> {
    let mut names = vec![country.place.name.clone()];
    let mut add = |name: &str| {
        let name = name.trim().to_owned();
        if !name.is_empty() && !name.starts_with("none") && !names.contains(&name) {
            names.push(name);
        }
    };
    for part in ["conventional long form", "conventional short form", "abbreviation"] {
        if let Some(text) = country.place.part("Government", "Country name", part) {
            add(text.split([';', '(']).next().unwrap_or_default());
        }
    }
    if country.place.name == "United States" {
        add("US");
    }
    names
}

/// Accepted forms of a value: numbers also without separators, areas without unit, names in
/// ordinary capitals.
pub(super) fn forms(relation: Relation, value: &str) -> Vec<String> {
    let mut forms = vec![value.to_owned()];
    let more = match relation {
        Relation::Population => vec![value.replace(',', "")],
        Relation::Area => {
            let number = value.trim_end_matches(" sq km");
            vec![
                number.to_owned(),
                format!("{number} square kilometres"),
                number.replace(',', ""),
            ]
        }
        Relation::ChiefOfState | Relation::HeadOfGovernment => {
            let bare: Vec<&str> = value.split(' ').skip_while(|word| TITLES.contains(word)).collect();
            (!bare.is_empty()).then(|| bare.join(" ")).into_iter().collect()
        }
        _ => Vec::new(),
    };
    for form in more {
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// Puts a question together; its gold passages are its hops' titles. The id is given later.
pub(super) fn question(
    kind: &str,
    text: String,
    answers: Vec<String>,
    sub_questions: Vec<SubQuestion>,
) -> LabelledQuestion {
    let mut passages: Vec<GoldPassage> = Vec::new();
    for title in sub_questions.iter().filter_map(|hop| hop.title.clone()) {
        if !passages.iter().any(|passage| passage.title == title) {
            passages.push(GoldPassage { title, sentence: None });
        }
    }
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    let text = first + letters.as_str();
    let gold = Gold {
        answers,
        passages,
        sub_questions,
        evidences: Vec::new(),
    };
    let question = Question {
        id: QuestionId(String::new()),
        text,
        options: Vec::new(),
    };
    LabelledQuestion {
        question,
        gold,
        kind: Some(kind.to_owned()),
        split: None,
    }
}
