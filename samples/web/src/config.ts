// Where the page finds Entra and the broker: config.json, beside index.html.

export interface Config {
  readonly clientId: string;
  readonly authority: string;
  readonly brokerUrl: string;
  readonly brokerScope: string;
}

const LOOPBACK = new Set(["localhost", "127.0.0.1", "[::1]"]);

export function isLoopback(url: string): boolean {
  return LOOPBACK.has(new URL(url).hostname);
}

// Returns the configuration in a parsed config.json, or throws an error that names what is wrong.
export function parseConfig(value: unknown): Config {
  const text = (name: string): string => {
    const found = (value as Record<string, unknown> | null)?.[name];
    if (typeof found !== "string" || found === "") throw new Error(`${name} is missing`);
    return found;
  };
  const url = (name: string): string => {
    const found = text(name).replace(/\/+$/, "");
    if (!URL.canParse(found)) throw new Error(`${name} is not a URL`);
    // Tokens travel to both.
    if (!found.startsWith("https://") && !(found.startsWith("http://") && isLoopback(found))) {
      throw new Error(`${name} must begin with https://`);
    }
    return found;
  };
  return {
    clientId: text("clientId"),
    authority: url("authority"),
    brokerUrl: url("brokerUrl"),
    brokerScope: text("brokerScope"),
  };
}

export async function loadConfig(): Promise<Config> {
  const response = await fetch("config.json", { cache: "no-store" });
  if (!response.ok) throw new Error(`config.json was answered with ${response.status}`);
  return parseConfig(await response.json());
}
