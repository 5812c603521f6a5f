//! A run as a table: a row for every question asked, as CSV or Parquet.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::types::Type;

use crate::export::unwritten;
use crate::results::name_of;
use crate::{Result, Studio, StudioError};

/// A column's values, one per question; `None` where there is none.
pub(crate) enum Cells {
    Text(Vec<Option<String>>),
    Number(Vec<Option<f64>>),
    Count(Vec<Option<i64>>),
}

pub(crate) type Table = Vec<(&'static str, Cells)>;

impl Studio {
    pub(crate) fn table(&self, run: &str) -> Result<Table> {
        let row = self.run_row(run)?;
        let mut asked = Vec::new();
        for episode in self.store().episodes(run)? {
            asked.push((self.episode_question(&row, &episode.question_id)?, episode));
        }
        type Asked = (gym::LabelledQuestion, store::Episode);
        let text = |of: fn(&Asked) -> Option<String>| Cells::Text(asked.iter().map(of).collect());
        let number = |of: fn(&store::Episode) -> Option<f64>| Cells::Number(asked.iter().map(|(_, e)| of(e)).collect());
        let count = |of: fn(&store::Episode) -> u64| {
            Cells::Count(asked.iter().map(|(_, episode)| Some(of(episode) as i64)).collect())
        };
        Ok(vec![
            (
                "question_id",
                text(|(labelled, _)| Some(labelled.question.id.0.clone())),
            ),
            ("question", text(|(labelled, _)| Some(labelled.question.text.clone()))),
            ("kind", text(|(labelled, _)| labelled.kind.clone())),
            ("status", text(|(_, episode)| Some(name_of(&episode.status)))),
            ("answer", text(|(_, episode)| episode.answer.clone())),
            (
                "gold_answer",
                text(|(labelled, _)| labelled.gold.answers.first().cloned()),
            ),
            (
                "termination",
                text(|(_, episode)| episode.termination.as_ref().map(name_of)),
            ),
            ("em", number(|episode| episode.em)),
            ("f1", number(|episode| episode.f1)),
            ("accuracy", number(|episode| episode.accuracy)),
            ("evidence_recall", number(|episode| episode.evidence_recall)),
            ("searches", count(|episode| episode.searches.into())),
            ("malformed_steps", count(|episode| episode.malformed_steps.into())),
            ("prompt_tokens", count(|episode| episode.usage.prompt.into())),
            ("cached_tokens", count(|episode| episode.usage.cached.into())),
            ("generated_tokens", count(|episode| episode.usage.generated.into())),
            ("took_ms", count(|episode| episode.took_ms)),
            ("error", text(|(_, episode)| episode.error.clone())),
        ])
    }
}

fn rows(table: &Table) -> usize {
    table.first().map_or(0, |(_, cells)| match cells {
        Cells::Text(values) => values.len(),
        Cells::Number(values) => values.len(),
        Cells::Count(values) => values.len(),
    })
}

/// A line of cells for every row, under a header line (RFC 4180); returns the number of rows.
pub(crate) fn write_csv(table: &Table, out: &mut dyn Write) -> Result<u32> {
    let header: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
    write!(out, "{}\r\n", header.join(",")).map_err(unwritten)?;
    for row in 0..rows(table) {
        let cells = table.iter().map(|(_, cells)| match cells {
            Cells::Text(values) => values[row].as_deref().map(csv_cell).unwrap_or_default(),
            Cells::Number(values) => values[row].map(|value| value.to_string()).unwrap_or_default(),
            Cells::Count(values) => values[row].map(|value| value.to_string()).unwrap_or_default(),
        });
        let cells: Vec<String> = cells.collect();
        write!(out, "{}\r\n", cells.join(",")).map_err(unwritten)?;
    }
    Ok(rows(table) as u32)
}

/// A cell, in quotes where it holds what would end it.
fn csv_cell(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.into()
    }
}

/// One row group, uncompressed; every column may hold nulls. Returns the number of rows.
pub(crate) fn write_parquet(table: &Table, out: &mut BufWriter<File>) -> Result<u32> {
    let write = || -> std::result::Result<(), ParquetError> {
        let fields = table.iter().map(|(name, cells)| Ok(Arc::new(field(name, cells)?)));
        let fields: Vec<_> = fields.collect::<std::result::Result<_, ParquetError>>()?;
        let schema = Type::group_type_builder("run").with_fields(fields).build()?;
        let mut writer = SerializedFileWriter::new(out, Arc::new(schema), Arc::default())?;
        let mut group = writer.next_row_group()?;
        for (_, cells) in table {
            let mut column = group
                .next_column()?
                .expect("the schema has a column for each of the table");
            match cells {
                Cells::Text(values) => {
                    let values = values.iter().map(|text| text.as_deref().map(ByteArray::from));
                    write_column::<ByteArrayType>(&mut column, values)?;
                }
                Cells::Number(values) => write_column::<DoubleType>(&mut column, values.iter().copied())?,
                Cells::Count(values) => write_column::<Int64Type>(&mut column, values.iter().copied())?,
            }
            column.close()?;
        }
        group.close()?;
        writer.close()?;
        Ok(())
    };
    write().map_err(|error| StudioError::Invalid(format!("the table cannot be written as Parquet: {error}")))?;
    Ok(rows(table) as u32)
}

fn field(name: &str, cells: &Cells) -> std::result::Result<Type, ParquetError> {
    let (physical, logical) = match cells {
        Cells::Text(_) => (Physical::BYTE_ARRAY, Some(LogicalType::String)),
        Cells::Number(_) => (Physical::DOUBLE, None),
        Cells::Count(_) => (Physical::INT64, None),
    };
    Type::primitive_type_builder(name, physical)
        .with_repetition(Repetition::OPTIONAL)
        .with_logical_type(logical)
        .build()
}

fn write_column<T: DataType>(
    column: &mut SerializedColumnWriter<'_>,
    values: impl Iterator<Item = Option<T::T>>,
) -> std::result::Result<(), ParquetError> {
    let (mut levels, mut present) = (Vec::new(), Vec::new());
    for value in values {
        levels.push(i16::from(value.is_some()));
        present.extend(value);
    }
    column.typed::<T>().write_batch(&present, Some(&levels), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::{FileReader, SerializedFileReader};
    use parquet::record::RowAccessor;

    fn table() -> Table {
        vec![
            ("answer", Cells::Text(vec![Some("a, \"b\"\nc".into()), None])),
            ("f1", Cells::Number(vec![None, Some(0.5)])),
            ("searches", Cells::Count(vec![Some(3), Some(0)])),
        ]
    }

    #[test]
    fn cells_are_quoted_where_they_must_be_and_absent_ones_are_empty() {
        let mut text = Vec::new();
        assert_eq!(write_csv(&table(), &mut text).unwrap(), 2);
        let expected = "answer,f1,searches\r\n\"a, \"\"b\"\"\nc\",,3\r\n,0.5,0\r\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[test]
    fn parquet_comes_back_with_its_types_and_nulls() {
        let mut file = tempfile::tempfile().unwrap();
        let mut out = BufWriter::new(file.try_clone().unwrap());
        assert_eq!(write_parquet(&table(), &mut out).unwrap(), 2);
        out.flush().unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(|row| row.unwrap()).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].get_string(0).unwrap(), "a, \"b\"\nc");
        assert!(rows[0].get_double(1).is_err() && rows[1].get_string(0).is_err());
        assert_eq!((rows[1].get_double(1).unwrap(), rows[0].get_long(2).unwrap()), (0.5, 3));
    }
}
