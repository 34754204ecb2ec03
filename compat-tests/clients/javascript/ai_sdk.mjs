// Calls a daemon through Vercel's AI SDK, with its Ollama provider and with its provider for OpenAI-compatible APIs.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany, generateObject, generateText, streamText, tool } from 'ai'
import { createOllama } from 'ollama-ai-provider-v2'
import { z } from 'zod'
import {
  CALL, FILM, QUESTION,
  all, assert, chat, check, embedder, history, host, isAboutGravity, similarity, tools,
} from './checks.mjs'

const ollama = createOllama({ baseURL: `${host}/api` })
const compatible = createOpenAICompatible({ name: 'hubllama', baseURL: `${host}/v1`, supportsStructuredOutputs: true })
// The Ollama provider sends sampling parameters only as options, and does not request reasoning by default.
const providerOptions = { ollama: { think: true, options: { temperature: 0, num_predict: 60 } } }
const settings = { temperature: 0, maxOutputTokens: 60, maxRetries: 0 }
const weather = tool({ description: 'Weather of a city', inputSchema: z.object({ city: z.string() }) })
const answer = z.object({ mood: z.enum(['good', 'bad']), stars: z.number().int().min(1).max(5) })

for (const [name, provider] of [['ollama', ollama], ['openai-compatible', compatible]]) {
  await check(`${name}: text`, async () => {
    const { text, usage } = await generateText({ model: provider(chat), prompt: QUESTION, ...settings })
    assert(isAboutGravity(text), text)
    assert(usage.outputTokens > 0)
  })

  await check(`${name}: text streamed`, async () => {
    const { textStream } = streamText({ model: provider(chat), prompt: QUESTION, ...settings })
    assert(isAboutGravity((await all(textStream)).join('')))
  })

  await check(`${name}: tools`, async () => {
    const request = { model: provider(tools), messages: history(CALL), tools: { get_weather: weather }, ...settings, providerOptions }
    const { toolCalls } = await generateText(request)
    assert.equal(toolCalls.length, 1)
    assert.deepEqual(toolCalls[0].input, { city: 'Paris' })
  })

  await check(`${name}: object`, async () => {
    const { object } = await generateObject({ model: provider(chat), prompt: FILM, schema: answer, ...settings })
    assert(object.stars >= 1 && object.stars <= 5)
  })

  await check(`${name}: embeddings`, async () => {
    const values = ['A cat sits on the mat.', 'A kitten rests on a rug.', 'Stock markets fell on Monday.']
    const model = provider.textEmbeddingModel(embedder)
    const { embeddings: [cat, kitten, stocks] } = await embedMany({ model, values, maxRetries: 0 })
    assert(similarity(cat, kitten) > similarity(cat, stocks) + 0.2)
  })
}
