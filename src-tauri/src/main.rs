#![cfg_attr(not(debug_assertions), windows_subsystem = "windows")]

fn main() {
    rag_gym_studio_lib::run();
}
