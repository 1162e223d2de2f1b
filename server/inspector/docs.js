// The OpenAPI document as a page: what there is, what goes in, what comes out. Nothing is loaded from elsewhere.
"use strict";

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function folded(title, value) {
  return element("details", "", element("summary", title), element("pre", JSON.stringify(value, null, 2)));
}

// A schema with its references filled in, as deep as a person reads.
function resolved(schema, document, depth = 6) {
  if (Array.isArray(schema)) return schema.map((each) => resolved(each, document, depth));
  if (!schema || typeof schema !== "object") return schema;
  if (schema.$ref) {
    const [kind, name] = schema.$ref.split("/").slice(-2);
    return depth ? resolved(document.components[kind][name], document, depth - 1) : name;
  }
  return Object.fromEntries(Object.entries(schema).map(([key, each]) => [key, resolved(each, document, depth)]));
}

function route(method, path, operation, document) {
  const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`));
  section.append(element("p", operation.summary || ""));
  if (operation.description) section.append(element("p", operation.description));
  if (operation.parameters) section.append(folded("Parameters", resolved(operation.parameters, document)));
  for (const [type, body] of Object.entries(operation.requestBody?.content || {})) {
    section.append(folded(`Body: ${type}`, resolved(body.schema, document)));
  }
  const refused = [];
  for (const [status, answer] of Object.entries(operation.responses)) {
    const contents = Object.entries(answer.content || {});
    if (contents.every(([, { schema }]) => (schema.$ref || "").endsWith("/ErrorReply"))) refused.push(status);
    else for (const [type, { schema }] of contents) section.append(folded(`${status}: ${type}`, resolved(schema, document)));
  }
  section.append(element("p", `An error: ${refused.join(", ")}`));
  return section;
}

async function show() {
  const main = document.getElementById("routes");
  try {
    const api = await (await fetch("/openapi.json")).json();
    const found = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => route(method, path, operation, api)));
    main.replaceChildren(...found);
  } catch (error) {
    main.replaceChildren(element("p", `The document cannot be read: ${error}`));
  }
}

show();
