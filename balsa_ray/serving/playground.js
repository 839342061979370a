// Clips are read here and sent as base64 inside the request that asks about them. The key is kept nowhere but in its field.
"use strict";

const SENT_AS_THEY_ARE = ["wav", "flac", "mp3", "ogg"];
const RATE = 16000; // Hz, what every Whisper encoder hears
const at = (id) => document.getElementById(id);
const clips = []; // {name, format, blob, url} in the order in which they are sent
let mostClips = new Map(); // by model
let recorder = null;
let asking = null; // the AbortController of the request under way

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", wrong);
}

const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

function headers() {
  const key = at("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

/** Returns the response, or throws what the endpoint says is wrong. */
async function request(path, options) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), ...options });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The endpoint can't be reached.");
  }
  at("key").ariaInvalid = String(response.status === 401);
  if (response.ok) return response;
  if (response.status === 401) throw new Error(at("key").value ? "The key is refused." : "This endpoint wants a key.");
  const body = await response.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The endpoint answered ${response.status}.`);
}

async function findModels() {
  mostClips = new Map();
  try {
    const { data } = await (await request("v1/models")).json();
    mostClips = new Map(data.map((model) => [model.id, model.metadata?.max_clips ?? 0]));
  } finally {
    at("model").replaceChildren(...[...mostClips.keys()].map((name) => new Option(name)));
    at("model").disabled = !mostClips.size;
    showClips();
  }
}

async function tryKey() {
  try {
    await findModels();
    if (!asking) say("");
  } catch (error) {
    say(error.message, at("key").value !== "");
  }
}

/** Most clips of a question; before the model is known, what an endpoint takes unless told otherwise. */
const most = () => mostClips.get(at("model").value) ?? 4;

function showClips() {
  at("clips").replaceChildren(
    ...clips.map((clip, index) => {
      const item = document.createElement("li");
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = `${index + 1}. ${clip.name}`;
      name.title = clip.name;
      const remove = document.createElement("button");
      remove.type = "button";
      remove.textContent = "Remove";
      remove.ariaLabel = `Remove clip ${index + 1}`;
      remove.onclick = () => {
        URL.revokeObjectURL(clip.url);
        clips.splice(clips.indexOf(clip), 1);
        showClips();
      };
      clip.player.ariaLabel = `Clip ${index + 1}`;
      item.append(name, clip.player, remove);
      return item;
    }),
  );
  at("count").textContent = `${clips.length} of at most ${most()}`;
}

async function addClip(blob, name) {
  const ending = name.split(".").pop().toLowerCase();
  const asItIs = SENT_AS_THEY_ARE.includes(ending);
  const kept = asItIs ? blob : await toWav(blob, name);
  if (clips.length >= most()) throw new Error(`${name}: this model takes at most ${most()} clips.`);
  const player = document.createElement("audio");
  const url = URL.createObjectURL(kept);
  player.controls = true;
  player.src = url;
  clips.push({ name, format: asItIs ? ending : "wav", blob: kept, url, player });
  showClips();
}

async function addFiles() {
  const files = [...at("files").files];
  at("files").value = ""; // so that the same file can be chosen again
  say("");
  try {
    for (const file of files) await addClip(file, file.name);
  } catch (error) {
    say(error.message, true);
  }
}

/** Returns what the browser can decode as 16-bit mono WAV. */
async function toWav(blob, name) {
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error(`${name}: this browser can't read it as audio.`);
  }
  const channels = Array.from({ length: audio.numberOfChannels }, (_, index) => audio.getChannelData(index));
  const view = new DataView(new ArrayBuffer(44 + 2 * audio.length));
  const text = (offset, word) => [...word].forEach((c, index) => view.setUint8(offset + index, c.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * audio.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // length of the format chunk
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 1, true); // channels
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true); // bytes a second
  view.setUint16(32, 2, true); // bytes a sample
  view.setUint16(34, 16, true); // bits a sample
  text(36, "data");
  view.setUint32(40, 2 * audio.length, true);
  for (let index = 0; index < audio.length; index++) {
    const mean = channels.reduce((sum, samples) => sum + samples[index], 0) / channels.length;
    view.setInt16(44 + 2 * index, Math.max(-1, Math.min(1, mean)) * 32767, true);
  }
  return new Blob([view], { type: "audio/wav" });
}

async function record() {
  if (recorder) return recorder.stop();
  if (clips.length >= most()) return say(`This model takes at most ${most()} clips.`, true);
  say("");
  at("record").disabled = true; // while the browser asks for permission
  try {
    // What makes speech clear takes other sounds away.
    const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
    const parts = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = async () => {
      stream.getTracks().forEach((track) => track.stop());
      recorder = null;
      showRecording();
      try {
        await addClip(new Blob(parts), "recording");
      } catch (error) {
        say(error.message, true);
      }
    };
    recorder.start();
  } catch (error) {
    say(`The microphone can't be used: ${error.message}`, true);
  }
  at("record").disabled = false;
  showRecording();
}

function showRecording() {
  at("record").textContent = recorder ? "Stop recording" : "Record";
  at("record").classList.toggle("on", recorder !== null);
}

async function base64(blob) {
  const reader = new FileReader();
  await new Promise((resolve, reject) => {
    reader.onload = resolve;
    reader.onerror = () => reject(new Error("A clip can't be read any more. Add it again."));
    reader.readAsDataURL(blob);
  });
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

async function body() {
  const audio = await Promise.all(
    clips.map(async (clip) => ({
      type: "input_audio",
      input_audio: { data: await base64(clip.blob), format: clip.format },
    })),
  );
  const question = { type: "text", text: at("question").value.trim() };
  return {
    model: at("model").value,
    messages: [{ role: "user", content: [...audio, question] }],
    temperature: at("temperature").valueAsNumber,
    max_tokens: at("max-tokens").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
}

const shortened = (key, value) =>
  key === "data" && value.length > 40 ? `${value.slice(0, 12)}… (${value.length} characters)` : value;

/** Yields the chunks of a streamed completion (server-sent events, a line each). */
async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

async function ask() {
  if (!at("question").value.trim()) return say("Write a question first.", true);
  asking = new AbortController();
  showAsking();
  try {
    if (!mostClips.size) await findModels();
    if (clips.length > most()) throw new Error(`This model takes at most ${most()} clips.`);
    const asked = await body();
    const sent = JSON.stringify(asked);
    at("request").textContent = JSON.stringify(asked, shortened, 2);
    at("sent").hidden = false;
    const limit = Number(document.body.dataset.maxBody);
    if (new Blob([sent]).size > limit) {
      throw new Error(`The request has ${size(sent.length)}; this endpoint takes ${size(limit)}.`);
    }
    const began = performance.now();
    const response = await request("v1/chat/completions", { method: "POST", body: sent, signal: asking.signal });
    let reason = null;
    let usage = null;
    for await (const chunk of chunks(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      at("answer").append(chunk.choices?.[0]?.delta?.content ?? "");
      reason = chunk.choices?.[0]?.finish_reason ?? reason;
      usage = chunk.usage ?? usage;
    }
    if (!reason) throw new Error("The answer broke off.");
    const tokens = usage ? `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written, ` : "";
    const cut = reason === "length" ? `; cut off at ${asked.max_tokens} tokens` : "";
    at("figures").textContent = `${tokens}${((performance.now() - began) / 1000).toFixed(1)} s${cut}`;
    say("");
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  }
  asking = null;
  showAsking();
}

function showAsking() {
  if (asking) {
    say("Asking …");
    at("answer").textContent = "";
    at("figures").textContent = "";
  }
  at("ask").disabled = asking !== null;
  at("stop").hidden = asking === null;
  at("answer").ariaBusy = String(asking !== null); // read out when it is whole
}

for (const example of document.querySelectorAll("#examples button")) {
  example.onclick = () => {
    at("question").value = example.dataset.text;
    const missing = clips.length < Number(example.dataset.clips);
    say(missing ? `This is asked about ${example.dataset.clips} clips or more: add them first.` : "");
  };
}
at("question").onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !asking) ask();
};
at("key").onchange = tryKey;
at("model").onchange = showClips;
at("files").onchange = addFiles;
at("record").onclick = record;
at("ask").onclick = ask;
at("stop").onclick = () => asking?.abort();
if (!navigator.mediaDevices || !window.MediaRecorder) {
  at("record").disabled = true;
  at("record").title = "Browsers give the microphone only to pages from this machine or over HTTPS";
}
tryKey();
