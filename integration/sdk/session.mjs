// What a program that uses openai-node does, against kvwarden. Only the base URL is special.
import assert from "node:assert/strict";
import OpenAI from "openai";

const model = "tiny";
const messages = [{ role: "user", content: "Write one sentence about the sea." }];
const client = (tenant, options = {}) =>
  new OpenAI({ defaultHeaders: { "X-Tenant-ID": tenant }, ...options });

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
  return { chunks, text };
}

async function answers(api) {
  const ids = (await api.models.list()).data.map((known) => known.id);
  assert.ok(ids.includes("org/tiny-model"), ids);
  assert.equal((await api.models.retrieve("org/tiny-model")).object, "model");
  const chat = await api.chat.completions.create({ model, messages, max_tokens: 12 });
  assert.ok(chat.choices[0].message.content && chat.usage.completion_tokens <= 12);
  assert.ok(chat._request_id);
  const completion = await api.completions.create({ model, prompt: "The sea", max_tokens: 5 });
  assert.ok(completion.choices[0].text);
  const vectors = (await api.embeddings.create({ model, input: ["one", "two"] })).data;
  assert.equal(vectors.length, 2);
  assert.equal(typeof vectors[0].embedding[0], "number");
}

async function streams(api) {
  const ask = { model, messages, max_tokens: 12, stream: true };
  const plain = await collect(await api.chat.completions.create(ask));
  assert.ok(plain.text);
  assert.ok(plain.chunks.every((chunk) => !chunk.usage));
  const options = { stream_options: { include_usage: true } };
  const counted = await collect(await api.chat.completions.create({ ...ask, ...options }));
  assert.ok(counted.text);
  assert.ok(counted.chunks.at(-1).usage.completion_tokens <= 12);
}

async function errors(api) {
  await assert.rejects(api.chat.completions.create({ model: "nope", messages }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    assert.equal(error.param, "model");
    return true;
  });
  for (const stream of [false, true]) {
    const ask = { model, messages, temperature: -1, stream };
    await assert.rejects(api.chat.completions.create(ask), OpenAI.BadRequestError);
  }
}

async function limits() {
  // One request a second: the second one is refused and the SDK itself waits and asks again.
  const ask = { model, messages, max_tokens: 2 };
  const patient = client("limited", { maxRetries: 2 });
  await patient.chat.completions.create(ask);
  const before = performance.now();
  await patient.chat.completions.create(ask);
  const waited = (performance.now() - before) / 1000;
  assert.ok(waited > 0.3 && waited < 5, `waited ${waited} s instead of about one`);
  const hasty = client("limited", { maxRetries: 0 });
  await assert.rejects(hasty.chat.completions.create(ask), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.equal(error.code, "rate_limit_exceeded");
    assert.ok(Number(error.headers.get("retry-after-ms")) <= 1000);
    return true;
  });
}

const api = client("sdk");
await answers(api);
await streams(api);
await errors(api);
await limits();
console.log("the session is over");
