// What every client asks, and whom: `node <script>.mjs URL MODEL`. As in questions.py.

export const [URL, MODEL] = process.argv.slice(2);
export const KEY = "none";
export const UNKNOWN = "unknown";

export const QUESTION = "Name three colours.";
export const FOLLOW_UP = "Which of them is the darkest?";
export const TOKENS = 24;

export const RECORD = "Ada is 36 years old. Give her name and her age.";
export const PRODUCT = "What is 17 * 3?";
export const CALL_TOKENS = 64;

export const ROUTING = { routing: { mode: "fixed", weights: { math: 0.9 } } };
