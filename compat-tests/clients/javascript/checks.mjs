// Functions and data of the JavaScript scripts. Each script is called as
//
//     node SCRIPT.mjs HOST CHAT TOOLS EMBEDDER [PULL]
//
// with the names of three models: one for chats, one with tools and reasoning, and one for embeddings. They must exist; the
// model PULL is pulled first and deleted at the end. A script prints `ok CHECK` lines and exits non-zero at the first check
// that fails.

export { strict as assert } from 'node:assert'

export const [host, chat, tools, embedder, pull] = process.argv.slice(2)

export const QUESTION = 'Explain in one sentence what gravity is.'
export const MESSAGES = [{ role: 'user', content: QUESTION }]
export const CITIES = ['Rome', 'Oslo', 'Bern', 'Lima', 'Cairo']

// The model is small: at temperature 0 it repeats the pattern of its history.
export const CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "CITY"}}\n</tool_call>'
export const THOUGHT = '<think>\nThe user asks about CITY.\n</think>\n\nIt is sunny.'

export const SCHEMA = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
export const TOOL = {
  type: 'function',
  function: { name: 'get_weather', description: 'Weather of a city', parameters: SCHEMA },
}
export const ANSWER = {
  type: 'object',
  properties: { mood: { enum: ['good', 'bad'] }, stars: { type: 'integer', minimum: 1, maximum: 5 } },
  required: ['mood', 'stars'],
}
export const FILM = 'Was the film good? Answer in JSON.'

// Returns a conversation in which every question has this answer, followed by one more question.
export function history(answer) {
  const turns = CITIES.flatMap((city) => [
    { role: 'user', content: `Weather in ${city}?` },
    { role: 'assistant', content: answer.replaceAll('CITY', city) },
  ])
  return [...turns, { role: 'user', content: 'Weather in Paris?' }]
}

export const isAboutGravity = (text) => text.includes('force') || text.toLowerCase().includes('gravity')

export function similarity(left, right) {
  const dot = (a, b) => a.reduce((sum, number, at) => sum + number * b[at], 0)
  return dot(left, right) / Math.sqrt(dot(left, left) * dot(right, right))
}

// Returns all items of a stream.
export async function all(stream) {
  const items = []
  for await (const item of stream) items.push(item)
  return items
}

// Runs a check and prints its name.
export async function check(name, body) {
  try {
    await body()
  } catch (error) {
    console.error(`failed ${name}: ${error.stack}`)
    process.exit(1)
  }
  console.log(`ok ${name}`)
}
