//! LoRA pairs and a reward head, in one flat vector of numbers for the optimiser; PEFT's files.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use candle_core::{Device, Tensor};
use gym::Seed;
use lm::config::Config;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::base::Part;
use crate::{Result, TrainingError};

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    pub rank: usize,
    /// The addition is scaled by `alpha / rank`.
    pub alpha: f32,
    pub targets: Vec<Part>,
    /// A scalar head on the last hidden state: a reward model.
    pub head: bool,
}

/// Low-rank additions to a base's weights: `W + alpha / rank · up downᵀ`.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub config: AdapterConfig,
    places: Vec<[Option<Place>; 7]>,
    head: Range<usize>,
    /// All numbers, in the order of the layers and parts.
    pub values: Vec<f32>,
}

/// Where a pair lies among the values. Queries' and keys' `up` rows are in the model file's order.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// (in, rank).
    pub down: Range<usize>,
    /// (out, rank).
    pub up: Range<usize>,
}

impl Adapter {
    /// Starts as PEFT does: `down` uniform within `±1/√in`, `up` zero, so that nothing changes at first.
    pub fn new(base: &Config, config: AdapterConfig, seed: Seed) -> Result<Adapter> {
        if config.rank == 0 || config.rank > 1024 || !config.alpha.is_finite() || config.alpha <= 0.0 {
            return Err(TrainingError::Invalid(format!(
                "rank {} with alpha {}: the rank goes from 1 to 1024, alpha is positive",
                config.rank, config.alpha
            )));
        }
        if config.targets.is_empty() && !config.head {
            return Err(TrainingError::Invalid("no module to train: name at least one".into()));
        }
        let mut adapter = Adapter {
            places: vec![Default::default(); base.layers],
            head: 0..0,
            values: Vec::new(),
            config,
        };
        for layer in 0..base.layers {
            for part in Part::ALL {
                if !adapter.config.targets.contains(&part) {
                    continue;
                }
                let (out, inside) = part.dims(base);
                let rank = adapter.config.rank;
                let mut rng = seed.derive(layer as u64).derive_str(part.name()).rng();
                let bound = 1.0 / (inside as f64).sqrt();
                let start = adapter.values.len();
                let draws = (0..inside * rank).map(|_| ((rng.next_f64() * 2.0 - 1.0) * bound) as f32);
                adapter.values.extend(draws);
                let middle = adapter.values.len();
                adapter.values.resize(middle + out * rank, 0.0);
                adapter.places[layer][part as usize] = Some(Place {
                    down: start..middle,
                    up: middle..adapter.values.len(),
                });
            }
        }
        if adapter.config.head {
            let mut rng = seed.derive_str("score").rng();
            let bound = 1.0 / (base.hidden as f64).sqrt();
            let start = adapter.values.len();
            let draws = (0..base.hidden).map(|_| ((rng.next_f64() * 2.0 - 1.0) * bound) as f32);
            adapter.values.extend(draws);
            adapter.head = start..adapter.values.len();
        }
        Ok(adapter)
    }

    pub fn scale(&self) -> f32 {
        self.config.alpha / self.config.rank as f32
    }

    pub(crate) fn place(&self, layer: usize, part: Part) -> Option<&Place> {
        self.places[layer][part as usize].as_ref()
    }

    pub(crate) fn head(&self) -> Range<usize> {
        self.head.clone()
    }

    /// Every trained tensor: its name in PEFT's file, less `.weight`, and where it lies.
    pub fn tensors(&self) -> Vec<(String, Range<usize>)> {
        let mut tensors = Vec::new();
        for (layer, places) in self.places.iter().enumerate() {
            for part in Part::ALL {
                if let Some(place) = &places[part as usize] {
                    let name = format!("base_model.model.model.layers.{layer}.{}", part.path());
                    tensors.push((format!("{name}.lora_A"), place.down.clone()));
                    tensors.push((format!("{name}.lora_B"), place.up.clone()));
                }
            }
        }
        if !self.head.is_empty() {
            tensors.push(("base_model.model.score".into(), self.head.clone()));
        }
        tensors
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, each complete or not at all.
    pub fn save(&self, base: &Config, dir: &Path, base_name: &str) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(TrainingError::file("create", dir))?;
        let mut tensors = HashMap::new();
        let tensor = |values: Vec<f32>, rows: usize| -> Result<Tensor> {
            let columns = values.len() / rows;
            Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
        };
        let rank = self.config.rank;
        for (layer, places) in self.places.iter().enumerate() {
            for part in Part::ALL {
                let Some(place) = &places[part as usize] else { continue };
                let (out, inside) = part.dims(base);
                let name = format!("base_model.model.model.layers.{layer}.{}", part.path());
                let down = transpose(&self.values[place.down.clone()], inside, rank);
                let up = reorder(&self.values[place.up.clone()], part, base, false);
                tensors.insert(format!("{name}.lora_A.weight"), tensor(down, rank)?);
                tensors.insert(format!("{name}.lora_B.weight"), tensor(up, out)?);
            }
        }
        if !self.head.is_empty() {
            let head = tensor(self.values[self.head.clone()].to_vec(), 1)?;
            tensors.insert("base_model.model.score.weight".into(), head);
        }
        let file = json!({
            "peft_type": "LORA",
            "task_type": if self.config.head { "SEQ_CLS" } else { "CAUSAL_LM" },
            "base_model_name_or_path": base_name,
            "r": rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "target_modules": self.config.targets.iter().map(|part| part.name()).collect::<Vec<_>>(),
            "bias": "none",
            // Without this PEFT gives the head random numbers when it loads.
            "modules_to_save": self.config.head.then_some(["score"]),
            "inference_mode": true,
        });
        let json = serde_json::to_vec_pretty(&file).expect("plain data");
        write_whole(&dir.join("adapter_config.json"), |path| std::fs::write(path, &json))?;
        write_whole(&dir.join("adapter_model.safetensors"), |path| {
            candle_core::safetensors::save(&tensors, path).map_err(std::io::Error::other)
        })
    }

    /// Reads an adapter that this program or PEFT saved.
    pub fn load(base: &Config, dir: &Path) -> Result<Adapter> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).map_err(TrainingError::file("read", &path))
        };
        let damaged = |message: String| TrainingError::Corrupt {
            path: dir.into(),
            message,
        };
        let file: PeftConfig =
            serde_json::from_slice(&read("adapter_config.json")?).map_err(|error| damaged(error.to_string()))?;
        if file.use_dora {
            return Err(damaged("DoRA adapters are not supported".into()));
        }
        if !file.alpha_pattern.is_empty() {
            return Err(damaged("adapters with an alpha_pattern are not supported".into()));
        }
        let mut tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&read("adapter_model.safetensors")?, &Device::Cpu)
                .map_err(|error| damaged(error.to_string()))?;
        let targets = Part::ALL
            .into_iter()
            .filter(|part| {
                tensors
                    .keys()
                    .any(|name| name.contains(&format!(".{}.lora_A", part.path())))
            })
            .collect();
        let rank = file.r;
        let config = AdapterConfig {
            rank,
            alpha: if file.use_rslora {
                file.lora_alpha * (rank as f32).sqrt()
            } else {
                file.lora_alpha
            },
            targets,
            head: tensors.contains_key("base_model.model.score.weight"),
        };
        let mut adapter = Adapter::new(base, config, Seed(0))?;
        let mut take = |name: String, dims: [usize; 2]| -> Result<Vec<f32>> {
            let tensor = tensors
                .remove(&name)
                .ok_or_else(|| damaged(format!("tensor `{name}` is missing")))?;
            if tensor.dims() != dims {
                let found = tensor.dims();
                return Err(damaged(format!(
                    "tensor `{name}` has dimensions {found:?}, expected {dims:?}"
                )));
            }
            Ok(tensor.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?)
        };
        for layer in 0..base.layers {
            for part in Part::ALL {
                let Some(place) = adapter.places[layer][part as usize].clone() else {
                    continue;
                };
                let (out, inside) = part.dims(base);
                let name = format!("base_model.model.model.layers.{layer}.{}", part.path());
                let down = take(format!("{name}.lora_A.weight"), [rank, inside])?;
                let up = take(format!("{name}.lora_B.weight"), [out, rank])?;
                adapter.values[place.down].copy_from_slice(&transpose(&down, rank, inside));
                adapter.values[place.up].copy_from_slice(&reorder(&up, part, base, true));
            }
        }
        if !adapter.head.is_empty() {
            let head = take("base_model.model.score.weight".into(), [1, base.hidden])?;
            adapter.values[adapter.head.clone()].copy_from_slice(&head);
        }
        match tensors.keys().min() {
            Some(name) => Err(damaged(format!("tensor `{name}` has no place in this model"))),
            None => Ok(adapter),
        }
    }

    /// The mean of each number over adapters of one shape. Where one was trained on from another, what lies between them
    /// often answers better than either (model soups, arXiv 2203.05482).
    pub fn mean(adapters: &[Adapter]) -> Result<Adapter> {
        let Some((first, others)) = adapters.split_first() else {
            return Err(TrainingError::Invalid("the mean of no adapters".into()));
        };
        let mut mean = first.clone();
        for other in others {
            if other.config != mean.config {
                return Err(TrainingError::Invalid(format!(
                    "adapters of different shapes have no mean: {:?} and {:?}",
                    mean.config, other.config
                )));
            }
            crate::elementwise::add(&mut mean.values, &other.values);
        }
        let share = 1.0 / adapters.len() as f32;
        mean.values.iter_mut().for_each(|value| *value *= share);
        Ok(mean)
    }

    /// The same pairs with this head on the last hidden state.
    #[must_use]
    pub fn with_head(mut self, head: &[f32]) -> Adapter {
        self.values.truncate(self.values.len() - self.head.len());
        let start = self.values.len();
        self.values.extend_from_slice(head);
        self.head = start..self.values.len();
        self.config.head = true;
        self
    }
}

/// Copies an adapter's tensors as 16-bit floats: half the size, to share.
pub fn halve(from: &Path, to: &Path) -> Result<()> {
    let mut tensors = candle_core::safetensors::load(from, &Device::Cpu)?;
    for tensor in tensors.values_mut() {
        *tensor = tensor.to_dtype(candle_core::DType::F16)?;
    }
    write_whole(to, |path| {
        candle_core::safetensors::save(&tensors, path).map_err(std::io::Error::other)
    })
}

/// What matters here of PEFT's `adapter_config.json`. Which modules are trained, the tensors say.
#[derive(Deserialize)]
struct PeftConfig {
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    /// Modules with a scale of their own.
    #[serde(default)]
    alpha_pattern: HashMap<String, f32>,
}

/// Writes beside `path`, then renames.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let failed = || TrainingError::file("write", path);
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let unfinished = Path::new(&unfinished);
    write(unfinished).map_err(failed())?;
    let file = std::fs::File::open(unfinished).map_err(failed())?;
    file.sync_all().map_err(failed())?;
    std::fs::rename(unfinished, path).map_err(failed())
}

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
}

/// Rows of `up` between Hugging Face's order, where a head's halves rotate together, and that of llama
/// files, where llama.cpp's converter has made number `i` of both halves neighbours.
fn reorder(up: &[f32], part: Part, base: &Config, to_file: bool) -> Vec<f32> {
    if !base.architecture.turns_neighbours() || !matches!(part, Part::Query | Part::Key) {
        return up.to_vec();
    }
    let dim = base.heads.dim;
    let rank = up.len() / part.dims(base).0;
    let mut out = vec![0.0; up.len()];
    for (head, rows) in up.chunks_exact(dim * rank).enumerate() {
        for i in 0..dim {
            let (theirs, ours) = (i, i % (dim / 2) * 2 + i / (dim / 2));
            let (from, to) = if to_file { (theirs, ours) } else { (ours, theirs) };
            out[(head * dim + to) * rank..][..rank].copy_from_slice(&rows[from * rank..][..rank]);
        }
    }
    out
}
