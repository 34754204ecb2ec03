// Calls a daemon's /v1 with OpenAI's official JavaScript package.

import OpenAI from 'openai'
import {
  ANSWER, CALL, FILM, MESSAGES, QUESTION, TOOL,
  all, assert, chat, check, embedder, history, host, isAboutGravity, tools,
} from './checks.mjs'

const client = new OpenAI({ baseURL: `${host}/v1`, apiKey: 'unused', maxRetries: 0 })
const settings = { temperature: 0, seed: 1, max_tokens: 40 }

await check('models', async () => {
  const ids = (await all(client.models.list())).map((entry) => entry.id)
  assert(ids.includes(chat) && ids.includes(embedder), ids)
  assert.equal((await client.models.retrieve(chat)).id, chat)
})

await check('chat', async () => {
  const reply = await client.chat.completions.create({ model: chat, messages: MESSAGES, ...settings })
  assert(isAboutGravity(reply.choices[0].message.content))
})

await check('chat streamed with usage', async () => {
  const request = { model: chat, messages: MESSAGES, stream: true, stream_options: { include_usage: true }, ...settings }
  const chunks = await all(await client.chat.completions.create(request))
  assert(isAboutGravity(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? '').join('')))
  assert(chunks.at(-1).usage.completion_tokens > 0)
})

await check('tools', async () => {
  const request = { model: tools, messages: history(CALL), tools: [TOOL], ...settings }
  const reply = await client.chat.completions.create(request)
  assert.equal(reply.choices[0].finish_reason, 'tool_calls')
  assert.deepEqual(JSON.parse(reply.choices[0].message.tool_calls[0].function.arguments), { city: 'Paris' })
})

await check('tool choice', async () => {
  const request = { model: tools, messages: MESSAGES, tools: [TOOL], tool_choice: 'required', ...settings, max_tokens: 120 }
  const reply = await client.chat.completions.create(request)
  assert.equal(reply.choices[0].message.tool_calls[0].function.name, 'get_weather')
})

await check('structured output', async () => {
  const response_format = { type: 'json_schema', json_schema: { name: 'answer', schema: ANSWER } }
  const messages = [{ role: 'user', content: FILM }]
  const reply = await client.chat.completions.create({ model: chat, messages, response_format, ...settings })
  assert(['good', 'bad'].includes(JSON.parse(reply.choices[0].message.content).mood))
})

await check('embeddings', async () => {
  const reply = await client.embeddings.create({ model: embedder, input: ['one', 'two'] })
  assert.deepEqual(reply.data.map((entry) => entry.embedding.length), [384, 384])
})

await check('responses streamed', async () => {
  const request = { model: chat, input: QUESTION, temperature: 0, max_output_tokens: 40, stream: true }
  const events = await all(await client.responses.create(request))
  assert.equal(events.at(-1).type, 'response.completed')
  const text = events.filter((event) => event.type === 'response.output_text.delta').map((event) => event.delta)
  assert(isAboutGravity(text.join('')))
})

await check('not found', async () => {
  const unknown = client.chat.completions.create({ model: 'hf:nobody/nothing-GGUF:Q4_0', messages: MESSAGES })
  await assert.rejects(unknown, { status: 404 })
})
