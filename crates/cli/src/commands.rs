//! What each command does with the studio and prints.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use studio::endpoint::{Route, Settings};
use studio::machine::EstimateView;
use studio::view::{
    AskEvent, AskRequest, EpisodeView, ImportView, IntervalView, ModelView, PassageView, RunRequest, RunView,
};
use studio::{Cancel, RunOptions, Studio};

use crate::arguments::{
    Arguments, BenchCommand, Command, CorpusCommand, EndpointCommand, ModelsCommand, QuestionsCommand, RunsCommand,
    TrainOptions,
};
use crate::output::{self, Progress, line, note};

pub fn execute(arguments: Arguments, cancel: &Cancel) -> Result<()> {
    let studio = Studio::open(arguments.home)?;
    let as_json = arguments.json;
    match arguments.command {
        Command::Setup => {
            let started = Instant::now();
            let mut progress = Progress::new();
            studio.setup(&mut |p| progress.show(&amount(&p.label, p.done, p.total)), cancel)?;
            drop(progress);
            if as_json {
                return output::json(
                    &json!({"home": studio.home(), "ready": true, "took_ms": started.elapsed().as_millis() as u64}),
                );
            }
            line(&format!(
                "ready in {}: corpus factbook; sets factbook-train, -dev, -test; model smollm2-135m",
                studio.home().display()
            ))
        }
        Command::Corpus(command) => corpus(&studio, command, as_json, cancel),
        Command::Questions(command) => questions(&studio, command, as_json, cancel),
        Command::Search {
            query,
            corpus,
            k,
            explain,
            retriever: _,
        } => search(&studio, &query, &corpus, k, explain, as_json),
        Command::Ask { question, agent } => {
            let request = AskRequest {
                question,
                settings: agent.settings(),
            };
            let episode = studio.ask(&request, cancel, &mut |event| {
                if !as_json {
                    narrate(&event);
                }
            })?;
            if as_json {
                output::json(&ask_json(&episode))
            } else {
                line(episode.answer.as_deref().unwrap_or("(no answer)"))
            }
        }
        Command::Run {
            questions,
            agent,
            limit,
            skip,
            name,
            workers,
            shard,
        } => {
            let request = RunRequest {
                name,
                questions,
                limit,
                settings: agent.settings(),
            };
            let run = studio.create_run(&request, &RunOptions { workers, skip, shard })?;
            work(&studio, &run, workers, as_json, cancel)
        }
        Command::Resume { run, workers } => work(&studio, &run, workers, as_json, cancel),
        Command::Runs(command) => runs(&studio, command, as_json),
        Command::Evaluate { run, against, metric } => {
            let metric = metric.map(|name| name.parse()).transpose()?;
            let evaluation = studio.evaluate(&run, against.as_deref(), metric)?;
            if as_json {
                return output::json(&evaluation);
            }
            line(&serde_json::to_string_pretty(&evaluation)?)
        }
        Command::Annotate { run, judge } => {
            let mut progress = Progress::new();
            let report = studio.annotate(&run, &judge, cancel, &mut |p| {
                progress.show(&format!("{}: {} of {}", p.label, p.done, p.total));
            })?;
            drop(progress);
            if as_json {
                return output::json(&report);
            }
            line(&format!(
                "{}: {} of {} states judged now, {} abstentions",
                report.judge, report.judged, report.states, report.abstained
            ))
        }
        Command::Agreement { run, judges: (a, b) } => {
            let agreement = studio.agreement(&run, &a, &b)?;
            if as_json {
                return output::json(&agreement);
            }
            line(&serde_json::to_string_pretty(&agreement)?)
        }
        Command::Train(options) => train(&studio, options, as_json, cancel),
        Command::Models(command) => models(&studio, command, as_json),
        Command::Endpoint(EndpointCommand::Add {
            name,
            url,
            model,
            key_env,
            context,
            chat: _,
            completions,
            grammar,
        }) => {
            let route = if completions { Route::Completions } else { Route::Chat };
            let settings = Settings {
                url,
                model,
                key_env,
                context_tokens: context,
                route,
                grammar,
            };
            let added = studio.add_endpoint(&name, settings, cancel)?;
            added.notes.iter().for_each(|text| note(&format!("note: {text}")));
            output::json(&model_json(&studio, &name)?)
        }
        Command::Merge { home2 } => {
            let report = studio.merge(&home2)?;
            let value = json!({"runs": report.runs, "episodes": report.episodes, "corpora": report.corpora, "question_sets": report.question_sets});
            if as_json {
                output::json(&value)
            } else {
                line(&format!("merged {value}"))
            }
        }
        Command::Bench(command) => bench(&studio, command, as_json, cancel),
        Command::Doctor => {
            let overview = studio.overview()?;
            let checks = studio.doctor()?;
            let report = studio.machine_report(false)?;
            let models = overview.models.iter().map(|model| {
                let estimate = report.estimates.iter().find(|estimate| estimate.model == model.name);
                with_estimate(model, estimate)
            });
            let value = json!({
                "version": overview.version, "home": overview.home, "ready": overview.ready, "threads": overview.threads,
                "memory_bytes": overview.memory_bytes, "cpu_features": cpu_features(), "machine": report.machine,
                "models": models.collect::<Result<Vec<_>>>()?,
                "corpora": overview.corpora, "question_sets": overview.question_sets, "checks": checks,
            });
            if as_json {
                output::json(&value)?;
            } else {
                line(&serde_json::to_string_pretty(&value)?)?;
            }
            let ill = checks.iter().filter(|check| !check.ok);
            let ill: Vec<String> = ill.map(|check| format!("{}: {}", check.name, check.detail)).collect();
            if ill.is_empty() {
                Ok(())
            } else {
                bail!("not well: {}", ill.join("; "))
            }
        }
    }
}

fn train(studio: &Studio, options: TrainOptions, as_json: bool, cancel: &Cancel) -> Result<()> {
    let mut progress = Progress::new();
    let mut failed = None;
    let report = studio.train(&options.request(), cancel, &mut |step| {
        if as_json {
            failed = failed.take().or(output::json(step).err());
        }
        let margin = step
            .margin
            .map_or(String::new(), |margin| format!(", margin {margin:.3}"));
        progress.show(&format!(
            "step {} of {}: loss {:.4}{margin}, {:.0} tokens/s ({:.0} computed)",
            step.step, step.steps, step.loss, step.example_tokens_per_second, step.tokens_per_second
        ));
    })?;
    drop(progress);
    match failed {
        Some(error) => Err(error),
        None if as_json => output::json(&report),
        None => line(&serde_json::to_string_pretty(&report)?),
    }
}

fn corpus(studio: &Studio, command: CorpusCommand, as_json: bool, cancel: &Cancel) -> Result<()> {
    match command {
        CorpusCommand::Import { path, name, format } => {
            let mut progress = Progress::new();
            let report = studio.import_corpus(
                &path,
                &name,
                Some(&format),
                &mut |p| progress.show(&amount(&p.label, p.done, p.total)),
                cancel,
            )?;
            drop(progress);
            imported(&report, "passages", as_json)
        }
        CorpusCommand::List => {
            let corpora = studio.corpora()?;
            if as_json {
                return output::json(&corpora);
            }
            corpora.iter().try_for_each(|corpus| {
                line(&format!(
                    "{}\t{} passages\t{}",
                    corpus.name, corpus.passages, corpus.format
                ))
            })
        }
        CorpusCommand::Show { name } => {
            let Some(corpus) = studio.corpora()?.into_iter().find(|corpus| corpus.name == name) else {
                bail!("there is no corpus `{name}`; `rag-gym corpus list` names those there are");
            };
            output::json(&corpus)
        }
        CorpusCommand::Remove { name } => {
            studio.remove_corpus(&name)?;
            done(as_json, "removed", &name)
        }
    }
}

fn questions(studio: &Studio, command: QuestionsCommand, as_json: bool, cancel: &Cancel) -> Result<()> {
    match command {
        QuestionsCommand::Import {
            path,
            name,
            corpus,
            format,
            split,
        } => {
            let mut progress = Progress::new();
            let report = studio.import_questions(
                &path,
                &name,
                corpus.as_deref(),
                Some(&format),
                split.as_deref(),
                &mut |p| progress.show(&amount(&p.label, p.done, p.total)),
                cancel,
            )?;
            drop(progress);
            imported(&report, "questions", as_json)
        }
        QuestionsCommand::List => {
            let sets = studio.question_sets()?;
            if as_json {
                return output::json(&sets);
            }
            sets.iter().try_for_each(|set| {
                line(&format!(
                    "{}\t{} questions\t{}",
                    set.name,
                    set.questions,
                    set.corpus.as_deref().unwrap_or("-")
                ))
            })
        }
    }
}

fn search(studio: &Studio, query: &str, corpus: &str, k: u32, explain: bool, as_json: bool) -> Result<()> {
    let found = studio.search(corpus, query, k)?;
    if as_json {
        let hits: Vec<Value> = found
            .hits
            .iter()
            .map(|hit| {
                let mut value =
                    json!({"id": hit.id, "title": hit.title, "text": text(hit), "score": hit.score, "rank": hit.rank});
                if explain {
                    value["explain"] = json!(studio.explain(corpus, query, &hit.id)?);
                }
                Ok(value)
            })
            .collect::<Result<_>>()?;
        return output::json(&json!({"hits": hits, "took_ms": found.took_ms}));
    }
    for hit in &found.hits {
        line(&format!(
            "{:>2}. {:.3}  {}\n    {}",
            hit.rank,
            hit.score,
            hit.title,
            text(hit)
        ))?;
        if explain {
            for term in studio.explain(corpus, query, &hit.id)? {
                line(&format!(
                    "      {:<20} {:.3}  (idf {:.3}, {} times)",
                    term.term, term.score, term.idf, term.frequency
                ))?;
            }
        }
    }
    Ok(())
}

/// Plays what is left of a run and prints the run's row.
fn work(studio: &Studio, run: &str, workers: u32, as_json: bool, cancel: &Cancel) -> Result<()> {
    note(&format!("run {run}"));
    let mut progress = Progress::new();
    let result = studio.work_on(run, workers, cancel, &mut |job| {
        let eta = job
            .eta_ms
            .map_or(String::new(), |ms| format!(", {:.0} s left", ms / 1000.0));
        progress.show(&format!("{}/{} questions{eta}", job.done, job.total));
    });
    drop(progress);
    let view = studio.run_view(run)?;
    if as_json {
        output::json(&run_json(&view))?;
    } else {
        line(&run_line(&view))?;
    }
    result.with_context(|| format!("run {run} stopped; `rag-gym resume {run}` goes on with it"))
}

fn runs(studio: &Studio, command: RunsCommand, as_json: bool) -> Result<()> {
    match command {
        RunsCommand::List => {
            let runs = studio.runs()?;
            if as_json {
                return output::json(&runs.iter().map(run_json).collect::<Vec<_>>());
            }
            runs.iter().try_for_each(|run| line(&run_line(run)))
        }
        RunsCommand::Show { run } => {
            let run = studio.run_view(&run)?;
            if as_json {
                output::json(&run_json(&run))
            } else {
                line(&serde_json::to_string_pretty(&run_json(&run))?)
            }
        }
        RunsCommand::Export { run, to, format, judge } => {
            let exported = studio.export(&run, &to, format, judge.as_deref())?;
            if as_json {
                output::json(&exported)
            } else {
                line(&format!(
                    "{} {} to {}",
                    exported.records,
                    format.records(),
                    exported.path.display()
                ))
            }
        }
        RunsCommand::Curve { runs, metric } => {
            let points = studio.curve(&runs, metric.parse()?)?;
            if as_json {
                return output::json(&points);
            }
            points.iter().try_for_each(|point| {
                let IntervalView { mean, low, high } = point.score;
                let score = format!("{metric} {mean:.3} [{low:.3}, {high:.3}] n {}", point.n);
                line(&format!(
                    "N {:<4} {score}  {}  {}",
                    point.candidates, point.run, point.name
                ))
            })
        }
        RunsCommand::Dump { run } => line(&studio.dump_run(&run)?),
        RunsCommand::Remove { run } => {
            studio.remove_run(&run)?;
            done(as_json, "removed", &run)
        }
    }
}

fn models(studio: &Studio, command: ModelsCommand, as_json: bool) -> Result<()> {
    match command {
        ModelsCommand::List => {
            let models = studio.models()?;
            if as_json {
                return output::json(&models);
            }
            models.iter().try_for_each(|model| {
                line(&format!(
                    "{}\t{}\t{}\t{:.0} M parameters",
                    model.name,
                    model.kind,
                    model.architecture,
                    model.parameters / 1e6
                ))
            })
        }
        ModelsCommand::Add { path, name, base } => output::json(&match base {
            Some(base) => studio.add_adapter(&path, &name, &base)?,
            None => studio.add_model(&path, &name)?,
        }),
        ModelsCommand::Average { adapters, name } => output::json(&studio.average_adapters(&adapters, &name)?),
        ModelsCommand::Export { name, to, half } => {
            studio.export_adapter(&name, &to, half)?;
            done(as_json, "exported", &name)
        }
        ModelsCommand::Show { name } => output::json(&model_json(studio, &name)?),
        ModelsCommand::Remove { name } => {
            studio.remove_model(&name)?;
            done(as_json, "removed", &name)
        }
    }
}

fn with_estimate(model: &ModelView, estimate: Option<&EstimateView>) -> Result<Value> {
    let mut model = serde_json::to_value(model)?;
    model["estimate"] = serde_json::to_value(estimate)?;
    Ok(model)
}

/// A model's row and what it may be expected to do; an endpoint's with its settings.
fn model_json(studio: &Studio, name: &str) -> Result<Value> {
    let mut model = with_estimate(&studio.model(name)?, studio.estimate(name)?.as_ref())?;
    if let Some(settings) = studio.endpoint(name)? {
        model["endpoint"] = serde_json::to_value(settings)?;
    }
    Ok(model)
}

fn bench(studio: &Studio, command: BenchCommand, as_json: bool, cancel: &Cancel) -> Result<()> {
    let value = match command {
        BenchCommand::Retrieve { corpus, questions } => {
            serde_json::to_value(studio.bench_retrieve(corpus.as_deref(), questions.as_deref(), cancel)?)?
        }
        BenchCommand::Episode {
            model,
            episodes,
            workers,
        } => serde_json::to_value(studio.bench_episode(&model, episodes as usize, workers, cancel)?)?,
        BenchCommand::Train { model, tokens, steps } => {
            serde_json::to_value(studio.bench_train(&model, tokens as usize, steps as usize, cancel)?)?
        }
        BenchCommand::Generate { options } => serde_json::to_value(studio.bench_generate(&options.options(), cancel)?)?,
        BenchCommand::Logprobs { text, options, window } => {
            let text = fs::read_to_string(&text).with_context(|| format!("cannot read {}", text.display()))?;
            serde_json::to_value(studio.bench_logprobs(&options.options(), &text, window)?)?
        }
    };
    if as_json {
        output::json(&value)
    } else {
        line(&serde_json::to_string_pretty(&value)?)
    }
}

fn done(as_json: bool, what: &str, name: &str) -> Result<()> {
    if as_json {
        output::json(&json!({ what: name }))
    } else {
        line(&format!("{what} {name}"))
    }
}

fn imported(report: &ImportView, what: &str, as_json: bool) -> Result<()> {
    if as_json {
        return output::json(report);
    }
    line(&format!(
        "{}: {} of {} {what} kept ({})",
        report.name, report.kept, report.read, report.format
    ))?;
    for rejection in &report.rejected {
        note(&format!("{}:{}: {}", rejection.file, rejection.line, rejection.reason));
    }
    if report.rejected_count as usize > report.rejected.len() {
        note(&format!("… {} rejected in all", report.rejected_count));
    }
    Ok(())
}

fn amount(label: &str, done: f64, total: f64) -> String {
    if total > 0.0 {
        format!("{label}: {:.1} of {:.1} MB", done / 1e6, total / 1e6)
    } else {
        label.to_owned()
    }
}

/// A question's steps as they happen, on standard error.
fn narrate(event: &AskEvent) {
    match event {
        AskEvent::Loading { model } => note(&format!("loading {model}")),
        AskEvent::Candidates { candidates, chosen } => {
            for (idx, candidate) in candidates.iter().enumerate() {
                let mark = if idx == *chosen as usize { '>' } else { ' ' };
                let action = match (&candidate.query, &candidate.answer, &candidate.malformed) {
                    (Some(query), _, _) => format!("search: {query}"),
                    (None, Some(answer), _) => format!("answer: {answer}"),
                    (None, None, reason) => format!("malformed: {}", reason.as_deref().unwrap_or_default()),
                };
                let reward = candidate
                    .reward
                    .map_or(String::new(), |reward| format!("  [{reward:.2}]"));
                note(&format!("{mark} {action}{reward}"));
            }
        }
        AskEvent::Retrieved { passages, .. } => passages
            .iter()
            .for_each(|hit| note(&format!("    {}. {}", hit.rank, hit.title))),
        AskEvent::Finding { finding } => note(&format!("    found: {finding}")),
        _ => {}
    }
}

fn text(hit: &PassageView) -> String {
    hit.text.iter().map(|segment| segment.text.as_str()).collect()
}

/// The fields of `ask --json` that scripts rely on.
fn ask_json(episode: &EpisodeView) -> Value {
    let mut history: Vec<Value> = Vec::new();
    let mut steps = Vec::new();
    for step in &episode.steps {
        let candidates: Vec<Value> = step
            .candidates
            .iter()
            .map(|c| {
                json!({"text": c.text, "query": c.query, "answer": c.answer, "malformed": c.malformed, "logprob": c.logprob,
                       "reward": c.reward, "multiplicity": c.multiplicity})
            })
            .collect();
        let documents: Vec<Value> = step
            .passages
            .iter()
            .map(|hit| json!({"id": hit.id, "title": hit.title, "score": hit.score}))
            .collect();
        steps.push(json!({"state": {"history": history}, "candidates": candidates, "chosen": step.chosen, "documents": documents}));
        if let Some(query) = &step.candidates[step.chosen as usize].query {
            let ids: Vec<&str> = step.passages.iter().map(|hit| hit.id.as_str()).collect();
            history.push(json!({"query": query, "documents": ids, "finding": step.finding}));
        }
    }
    json!({"answer": episode.answer, "steps": steps, "terminated": episode.termination, "tokens": episode.tokens, "took_ms": episode.took_ms})
}

/// The fields of `run --json` and `runs show --json`.
fn run_json(run: &RunView) -> Value {
    json!({"run": run.id, "name": run.name, "status": run.status, "question_set": run.question_set, "questions": run.questions, "n": run.questions,
           "finished": run.finished, "failed": run.failed, "malformed_rate": run.malformed_rate, "searches_mean": run.searches_mean,
           "em": run.em, "f1": run.f1, "took_ms": run.took_ms, "config": run.settings, "error": run.error})
}

fn run_line(run: &RunView) -> String {
    let f1 = run.f1.map_or("F1 -".into(), |f1| {
        format!("F1 {:.3} [{:.3}, {:.3}] n {}", f1.mean, f1.low, f1.high, run.questions)
    });
    format!(
        "{}  {:<8}  {}/{}  {}  {}",
        run.id, run.status, run.finished, run.questions, f1, run.name
    )
}

/// What this processor offers to the kernels, asked at run time.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let all = [
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("f16c", std::is_x86_feature_detected!("f16c")),
            ("avx512f", std::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
            ("avxvnni", std::is_x86_feature_detected!("avxvnni")),
        ];
        all.into_iter()
            .filter_map(|(name, present)| present.then_some(name))
            .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}
