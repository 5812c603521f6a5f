//! Small conversions between rows and values, shared by the tables.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Params, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

pub fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(sql)?.query_map(params, read)?.collect()
}

pub fn first<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    connection.prepare_cached(sql)?.query_row(params, read).optional()
}

pub fn execute(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(params)
}

pub fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data with string keys serialises")
}

pub fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let idx = row.as_ref().column_index(column)?;
    parse(idx, row.get_ref(idx)?.as_str()?)
}

pub fn from_json_or_null<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let idx = row.as_ref().column_index(column)?;
    row.get_ref(idx)?
        .as_str_or_null()?
        .map(|text| parse(idx, text))
        .transpose()
}

fn parse<T: DeserializeOwned>(idx: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(idx, Type::Text, Box::new(error)))
}

/// The snake-case name of a unit variant, as serde spells it.
pub fn to_name(value: &impl Serialize) -> String {
    to_json(value).trim_matches('"').to_owned()
}

pub fn from_name<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<T> {
    let idx = row.as_ref().column_index(column)?;
    parse(idx, &to_json(&row.get_ref(idx)?.as_str()?))
}

pub fn from_name_or_null<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let idx = row.as_ref().column_index(column)?;
    row.get_ref(idx)?
        .as_str_or_null()?
        .map(|text| parse(idx, &to_json(&text)))
        .transpose()
}

/// SQLite's integers are signed; counts and durations stay far below the limit.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub fn unsigned(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.max(0) as u64)
}

/// Hashes records so that no two lists of records give the same bytes.
#[derive(Default)]
pub struct ContentHash(Sha256);

impl ContentHash {
    pub fn add(&mut self, field: &str) {
        self.0.update((field.len() as u64).to_le_bytes());
        self.0.update(field);
    }

    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
