// The three ways to a Communication Services token.

export type WayId = "mapped" | "entra" | "teams";

export interface Way {
  readonly id: WayId;
  readonly path: string;
  readonly title: string;
  readonly whose: string;
  readonly scopes: string;
}

export const WAYS: readonly Way[] = [
  {
    id: "mapped",
    path: "/api/token",
    title: "Mapped identity",
    whose: "An identity that the broker keeps for you, apart from your Entra account. For calls and chat.",
    scopes: "all that the broker grants",
  },
  {
    id: "entra",
    path: "/api/token/entra",
    title: "Entra ID user",
    whose: "You, under your Entra account, where the resource’s owner has let you in. A Microsoft preview.",
    scopes: "those that the operator has set",
  },
  {
    id: "teams",
    path: "/api/token/teams",
    title: "Teams user",
    whose: "You, as in Teams: your calls and chats there, with your Teams licence.",
    scopes: "Teams calls and chats",
  },
];

export function wayOf(id: string | undefined): Way | undefined {
  return WAYS.find((way) => way.id === id);
}
