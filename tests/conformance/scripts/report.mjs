// How a script tells what came of what its client was asked for. As in report.py.

// Run each check, and print one JSON object: its name -> "ok" or what went wrong.
export async function report(checks) {
  const outcomes = {};
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
      outcomes[name] = "ok";
    } catch (error) {
      outcomes[name] = `${error.name}: ${error.message}`;
    }
  }
  console.log(JSON.stringify(outcomes));
}

export function expect(holds, otherwise) {
  if (!holds) throw new Error(otherwise);
}
