// Calls a daemon with Ollama's official JavaScript package.

import { Ollama } from 'ollama'
import {
  ANSWER, CALL, FILM, MESSAGES, THOUGHT, TOOL,
  all, assert, chat, check, embedder, history, host, isAboutGravity, pull, similarity, tools,
} from './checks.mjs'

const client = new Ollama({ host })
const options = { temperature: 0, seed: 1, num_predict: 40 }
const names = async () => (await client.list()).models.map((entry) => entry.model)

// The package rejects a stream that ends without a final frame (traps 4, 58).
await check('pull', async () => {
  const frames = await all(await client.pull({ model: pull, stream: true }))
  assert.equal(frames.at(-1).status, 'success')
  assert(frames.some((frame) => frame.digest && frame.completed === frame.total), 'no layer was finished')
  assert((await names()).includes(pull))
})

await check('list', async () => {
  const entry = (await client.list()).models.find((entry) => entry.model === chat)
  assert.equal(entry.digest.length, 64)
  assert(entry.size > 0 && entry.details.family === 'llama' && !Number.isNaN(new Date(entry.modified_at).getTime()))
})

await check('show', async () => {
  const shown = await client.show({ model: tools })
  assert(shown.capabilities.includes('tools') && shown.capabilities.includes('thinking'), shown.capabilities)
  assert.equal(shown.model_info['general.architecture'], 'llama')
})

// The package throws if a frame has the key error (traps 4, 5).
await check('chat streamed', async () => {
  const frames = await all(await client.chat({ model: chat, messages: MESSAGES, stream: true, options }))
  assert(isAboutGravity(frames.map((frame) => frame.message.content).join('')))
  assert(frames.at(-1).done && frames.at(-1).eval_count > 0)
})

await check('chat', async () => {
  const reply = await client.chat({ model: chat, messages: MESSAGES, options })
  assert(isAboutGravity(reply.message.content), reply.message.content)
})

await check('generate', async () => {
  const reply = await client.generate({ model: chat, prompt: 'Say hello.', options })
  assert(reply.response.trim() && reply.context.length > 0)
})

// An aborted request must free the model (trap 33).
await check('abort', async () => {
  const stream = await client.chat({ model: chat, messages: MESSAGES, stream: true, options: { num_predict: -1 } })
  let frames = 0
  const aborted = (async () => {
    for await (const _ of stream) if (++frames === 3) stream.abort()
  })()
  await assert.rejects(aborted, { name: 'AbortError' })
  // The model is available again at once.
  await client.chat({ model: chat, messages: MESSAGES, options: { num_predict: 1 } })
})

// Arguments are an object, and no part of a call is content (traps 7, 66).
await check('tools', async () => {
  const request = { model: tools, messages: history(CALL), tools: [TOOL], options }
  const reply = await client.chat(request)
  assert.deepEqual(reply.message.tool_calls[0].function.arguments, { city: 'Paris' })
  const frames = await all(await client.chat({ ...request, stream: true }))
  const calls = frames.flatMap((frame) => frame.message.tool_calls ?? [])
  assert.equal(calls.length, 1)
  assert(!frames.some((frame) => frame.message.content.includes('tool_call')), 'a piece of the call got out')
})

await check('thinking', async () => {
  const reply = await client.chat({ model: tools, messages: history(THOUGHT), think: true, options })
  assert.match(reply.message.thinking, /Paris/)
  assert.doesNotMatch(reply.message.content, /think/)
})

await check('structured output', async () => {
  const messages = [{ role: 'user', content: FILM }]
  const reply = await client.chat({ model: chat, messages, format: ANSWER, options })
  const { mood, stars } = JSON.parse(reply.message.content)
  assert(['good', 'bad'].includes(mood) && stars >= 1 && stars <= 5)
})

await check('embed', async () => {
  const input = ['A cat sits on the mat.', 'A kitten rests on a rug.', 'Stock markets fell on Monday.']
  const [cat, kitten, stocks] = (await client.embed({ model: embedder, input })).embeddings
  assert.equal(cat.length, 384)
  assert(similarity(cat, kitten) > similarity(cat, stocks) + 0.2)
})

await check('loaded models', async () => {
  const { models } = await client.ps()
  assert(models.some((entry) => entry.model === chat && new Date(entry.expires_at) > new Date()), JSON.stringify(models))
})

await check('alias created and deleted', async () => {
  const created = await client.create({ model: 'compat-js', from: chat, system: 'You are a pirate.' })
  assert.equal(created.status, 'success')
  assert.match((await client.show({ model: 'compat-js' })).modelfile, /pirate/)
  assert((await client.chat({ model: 'compat-js', messages: MESSAGES, options })).message.content)
  await client.delete({ model: 'compat-js' })
  assert(!(await names()).includes('compat-js:latest'))
})

// The package reads `error` from the body (traps 6, 20).
await check('not found', async () => {
  const unknown = client.chat({ model: 'hf:nobody/nothing-GGUF:Q4_0', messages: MESSAGES })
  await assert.rejects(unknown, { status_code: 404, message: /not found/ })
})

await check('delete', async () => {
  await client.delete({ model: pull })
  assert(!(await names()).includes(pull))
})
