// Where Entra sends the browser back to. MSAL hands the answer to the page that asked for it: the
// page itself after a redirect, or the page around a hidden frame after a silent request.

import { broadcastResponseToMainFrame } from "@azure/msal-browser/redirect-bridge";

broadcastResponseToMainFrame().catch(() => {
  // Somebody opened this address by hand: there is no answer to hand over.
  location.replace("./");
});
